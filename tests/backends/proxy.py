"""The real proxy before a backend, with a preset and what a case is about, and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from process import free_port, running
from protocol import HERE, Backend

BIN = os.environ.get("SERIATIM_BIN", str(HERE.parent.parent / "target" / "debug" / "seriatim"))


def configuration(backend: Backend, options: str, port: int, backend_port: int) -> str:
    """The configuration file; `options` are TOML lines beside the preset."""
    return (
        f'listen = "127.0.0.1:{port}"\nupstream = "http://127.0.0.1:{backend_port}"\n\n[store]\nurl = "memory:"\n\n'
        f'[admin]\nlisten = "127.0.0.1:0"\n\n[[routes]]\npreset = "{backend.preset}"\n{backend.options}\n{options}\n'
    )


@asynccontextmanager
async def proxy(backend: Backend, options: str, backend_port: int, folder: Path) -> AsyncIterator[str]:
    """Runs a proxy; the value is its URL."""
    port = free_port()
    file = folder / f"seriatim-{port}.toml"
    file.write_text(configuration(backend, options, port, backend_port))
    async with running((BIN, "--config", str(file)), port, {}, folder / "seriatim.log"):
        yield f"http://127.0.0.1:{port}"


async def problem(backend: Backend, options: str, folder: Path) -> str | None:
    """What `seriatim check` says against these options; None if they are right."""
    file = folder / "check.toml"
    file.write_text(configuration(backend, options, 1, 2))
    check = await asyncio.create_subprocess_exec(
        BIN, "--config", str(file), "check", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await check.communicate()
    return errors.decode() if check.returncode else None

"""Processes of this test: each on a free port, awaited, and ended together with what it started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

# For a process to listen, on a machine that is busy.
START_LIMIT = 180.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@asynccontextmanager
async def running(command: Sequence[str], port: int, env: Mapping[str, str], log: Path, folder: Path | None = None) -> AsyncIterator[None]:
    """Runs a process from the moment when it listens on its port; at the end, kills it and its children."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**os.environ, **env}, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        async with asyncio.timeout(START_LIMIT):
            while not await listens(port):
                if process.returncode is not None:
                    raise SystemExit(f"{' '.join(command)} ended at once:\n{log.read_text(errors='replace')[-4000:]}")
                await asyncio.sleep(0.05)
        yield
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await process.wait()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True

"""Processes of this test: each on a free port, awaited, and ended together with what it started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

# For a process to listen, on a machine that is busy.
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def started(command: Sequence[str], port: int, env: dict[str, str], log: Path) -> asyncio.subprocess.Process:
    """Starts a process, and waits until it listens on its port."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **env}, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        async with asyncio.timeout(PATIENCE):
            while not await listens(port):
                if process.returncode is not None:
                    raise SystemExit(f"{command[0]} ended at once: {log.read_text(errors='replace')[-2000:]}")
                await asyncio.sleep(0.05)
    except BaseException:
        await stopped(process)
        raise
    return process


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def stopped(process: asyncio.subprocess.Process) -> None:
    """Ends a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await process.wait()

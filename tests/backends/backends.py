"""Runs real backends behind the real proxy, each with its preset alone, and prints what was seen as a table.

Usage: backends.py [--case NAME]... [NAME...], or backends.py --versions [NAME...]. Without names, all folders beside
this file that have a backend.py. Exits with 1 if anything is otherwise than it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from cases import Cases, Wrong
from client import Client
from packages import compared, installed
from process import free_port, running
from protocol import HERE, Backend
from record import Late, Record

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve()

# For one case.
CASE_LIMIT = 240.0

NAMES = sorted(path.parent.name for path in HERE.glob("*/backend.py"))


def load(name: str) -> Backend:
    """The backend of a folder."""
    folder = HERE / name
    spec = importlib.util.spec_from_file_location(f"backend_{name.replace('-', '_')}", folder / "backend.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backend: Backend = module.backend
    backend.folder, backend.packages = folder, TARGET / "backends" / name
    return backend


async def tried(name: str, wanted: list[str], folder: Path) -> tuple[list[str], bool]:
    """Tries one backend: its row of the table, and whether all is well."""
    backend = load(name)
    record = Record(folder / "record.jsonl")
    cells, well = [], True
    async with AsyncExitStack() as stack:
        env = {"RECORD": str(record.path), "PYTHONPATH": str(HERE / "python"), "PYTHONDONTWRITEBYTECODE": "1", "TURN": str(HERE / "node" / "turn.mjs")}
        if backend.needs_model:
            port = free_port()
            await stack.enter_async_context(running((sys.executable, str(HERE / "model.py"), str(port)), port, env, folder / "model.log"))
            backend.model_url = f"http://127.0.0.1:{port}/v1"
        port = free_port()
        log = folder / "backend.log"
        await stack.enter_async_context(running(backend.command(port), port, {**env, **backend.env()}, log, backend.place()))
        async with Client(f"http://127.0.0.1:{port}", backend.goes_on) as client:
            await backend.ready(client)
        cases = Cases(backend, port, record, folder)
        for case, run in Cases.ALL.items():
            if wanted and case not in wanted:
                cells.append("")
                continue
            began = time.monotonic()
            try:
                async with asyncio.timeout(CASE_LIMIT):
                    cell = await run(cases)
            except (Wrong, Late, TimeoutError) as error:
                cell, well = "**WRONG**", False
                print(f"\n{name}, {case}: {error or 'no end within the limit'}", flush=True)
            except Exception as error:  # noqa: BLE001: one case must not end the others
                cell, well = "**WRONG**", False
                print(f"\n{name}, {case}: {type(error).__name__}: {error}", flush=True)
            cells.append(cell)
            print(f"{name}, {case}: {cell} ({time.monotonic() - began:.1f} s)", file=sys.stderr, flush=True)
        if not well:
            print(f"\n{name}: the backend's last words:\n{log.read_text(errors='replace')[-3000:]}", flush=True)
    versions = ", ".join(f"{package} {version}" for package, version in installed(backend))
    return [f"`{backend.preset}`", versions, *cells], well


async def all_of(names: list[str], wanted: list[str]) -> bool:
    """Tries them one after another, so that none is slow because of another."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me
    # The processes end with this one.
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, me.cancel)
    rows, well = [], True
    with tempfile.TemporaryDirectory(prefix="backends-") as folder:
        for name in names:
            (Path(folder) / name).mkdir()
            row, good = await tried(name, wanted, Path(folder) / name)
            rows.append(row)
            well = well and good
    print(table([["preset", "packages", *Cases.ALL], *rows]))
    return well


def table(rows: list[list[str]]) -> str:
    """A Markdown table with a head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["", lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs real backends behind the real proxy, each with its preset.")
    parser.add_argument("--case", action="append", default=[], choices=Cases.ALL, help="only this case; may be repeated")
    parser.add_argument("--versions", action="store_true", help="only say which packages have a newer version than the pinned one")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such backend: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.versions:
        print("\n".join(asyncio.run(compared([HERE / name for name in given.names or NAMES]))) or "all packages are the newest")
        return 0
    return 0 if asyncio.run(all_of(given.names or NAMES, given.case)) else 1


if __name__ == "__main__":
    sys.exit(main())

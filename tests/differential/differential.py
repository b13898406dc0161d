#!/usr/bin/env python3
"""Proxy and backend never see different sessions: many requests, straight to real servers and through the proxy.

    SERIATIM_BIN=target/debug/seriatim target/differential/venv/bin/python tests/differential/differential.py

Arguments are names of servers; without any, all of them. SERIATIM_DIFFERENTIAL_SEED is the generator's seed,
SERIATIM_DIFFERENTIAL_CASES how many generated requests each server gets ("all": every one of them).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from generator import generated
from judge import Difference, Judge
from process import free_port, started, stopped
from servers import ENV, HERE, SERVERS, TARGET, Server
from store import Redis
from table import table
from variant import Request, Variant
from wire import Lane, Lane2

SEED = os.environ.get("SERIATIM_DIFFERENTIAL_SEED", "10")
CASES = os.environ.get("SERIATIM_DIFFERENTIAL_CASES", "1000")
PROXY = os.environ.get("SERIATIM_BIN", str(TARGET / "debug" / "seriatim"))
LANES = 8
# How many differences of one kind are shown of a server.
SHOWN = int(os.environ.get("SERIATIM_DIFFERENTIAL_SHOWN", "3"))
# What a server reads itself, whatever framework it has behind it.
SERVERS_OWN = {"path", "path id", "method", "query", "header", "mode", "trailer", "encoding"}
# Ids of what runs while its session is free begin here.
FREE = 500_000


class Bench:
    """A server, the proxy before it, and a Redis that both this test and the proxy write to."""

    def __init__(self, server: Server, redis: Redis, folder: Path) -> None:
        self.server, self.redis, self.folder = server, redis, folder
        variants, every = (self.concerning(all_of_them) for all_of_them in (table(), generated()))
        count = len(every) if CASES == "all" else min(int(CASES), len(every))
        variants += random.Random(f"{SEED} {server.name}").sample(every, count)
        self.variants = dict(enumerate(variants, 1))
        self.records = folder / "records"
        self.records.touch()
        self.judge = Judge(self.records, self.variants, server.undecoded, server.plus)
        self.statuses: dict[tuple[str, int], int] = {}
        self.problems: list[str] = []
        self.sent: Counter[str] = Counter()

    def concerning(self, variants: list[Variant]) -> list[Variant]:
        """Those that this server's reading depends on."""
        return [variant for variant in variants if not self.server.sibling or variant.kind in SERVERS_OWN]

    async def run(self) -> None:
        self.port, self.proxy_port = free_port(), free_port()
        backend = await started(self.server.started_by(self.port), self.port, {**ENV, "RECORDS": str(self.records)}, self.folder / "backend.log")
        try:
            upstream = f"{self.server.scheme}://127.0.0.1:{self.port}"
            env = {"SERIATIM__LISTEN": f"127.0.0.1:{self.proxy_port}", "SERIATIM__UPSTREAM": upstream, "SERIATIM__STORE__URL": self.redis.url}
            proxy = await started((PROXY, "--config", str(HERE / "routes.toml")), self.proxy_port, env, self.folder / "proxy.log")
            try:
                await self.compare()
                for name, process in (("server", backend), ("proxy", proxy)):
                    if process.returncode is not None:
                        self.problems.append(f"the {name} ended before its time ({process.returncode})")
            finally:
                await stopped(proxy)
        finally:
            await stopped(backend)

    async def compare(self) -> None:
        numbers = list(self.variants)
        await self.send("d", numbers, Lane, self.port)
        self.judge.read()
        await self.check_free()
        self.judge.held = self.judge.direct()
        await self.redis.hold(self.judge.held)
        for way, lane in (("t", Lane), ("h", Lane2)):
            again = numbers
            # What ran with a session that nobody held runs again, with that one held.
            for _ in range(2):
                await self.send(way, again, lane, self.proxy_port)
                free = self.judge.read()
                found = {key for turns in free.values() for turn in turns for key in turn.keys()}
                self.judge.held |= found
                await self.redis.hold(found)
                again = list(free)
        self.judge.read()
        self.check_honest()

    async def check_free(self) -> None:
        """What honest clients send runs, and with the session that was meant."""
        honest = [number for number, variant in self.variants.items() if variant.honest and self.runs_as_meant("d", number)]
        if len({self.variants[number].target for number in honest}) < 8:
            self.problems.append("hardly any honest request runs at this server: is its application right?")
        free = {number + FREE: self.variants[number] for number in honest}
        self.judge.variants = self.variants | free
        self.variants |= free
        await self.send("f", list(free), Lane, self.proxy_port)
        self.judge.read()
        for number, variant in free.items():
            if self.statuses["f", number] != 200 or not self.runs_as_meant("f", number):
                status = self.statuses["f", number]
                self.problems.append(f"refused ({status}), though honest and free: {variant.kind}, {variant.name}")

    def check_honest(self) -> None:
        """What honest clients send is told that its session is busy, and not that anything is wrong with it."""
        for number, variant in self.variants.items():
            if not variant.honest or number > FREE or not self.runs_as_meant("d", number):
                continue
            for way in "th":
                if self.statuses[way, number] != 429:
                    self.problems.append(f"{self.statuses[way, number]} instead of 429 ({way}): {variant.kind}, {variant.name}")

    def runs_as_meant(self, way: str, number: int) -> bool:
        meant = self.variants[number].names(number)[b"@A@"].decode()
        return any((turn.session or "").startswith(meant) for turn in self.judge.turns.get((way, number), []))

    async def send(self, way: str, numbers: Iterable[int], kind: Callable[[int], Lane], port: int) -> None:
        """Sends these variants, some at once, and waits until the server has nothing left to do."""
        left = iter(numbers)

        async def lane() -> None:
            line = kind(port)
            for number in left:
                request = self.variants[number].filled(number)
                self.statuses[way, number] = await line.call(request, f"{way}{number}")
                self.sent[way] += 1
            line.close()

        await asyncio.gather(*(lane() for _ in range(LANES)))
        last = Lane(self.port)
        await last.call(Request(b"GET", b"/query?session_id=last", (), None, ()), "last")
        last.close()

    def report(self, seconds: float) -> bool:
        """Whether all is well."""
        shown: dict[tuple[str, str], list[Difference]] = defaultdict(list)
        for _, difference in sorted(self.judge.differences.items()):
            shown[self.variants[difference.number].kind, difference.way].append(difference)
        for (kind, way), differences in sorted(shown.items()):
            print(f"\n{self.server.name}: {len(differences)} differences, {kind}, over HTTP/{2 if way == 'h' else 1}")
            for difference in differences[:SHOWN]:
                self.show(difference)
        for problem in self.problems:
            print(f"\n{self.server.name}: {problem}")
        counts = self.judge.counts()
        statuses = Counter(f"{status // 100}xx" for (way, _), status in self.statuses.items() if way in "th")
        print(
            f"{self.server.name:14} {self.sent['d']} straight, {counts['d']} ran; {self.sent['t']} through, {counts['t']} ran with no session; "
            f"{self.sent['h']} over HTTP/2, {counts['h']}; answers {dict(sorted(statuses.items()))}; "
            f"{len(self.judge.differences)} differences, {len(self.problems)} refused wrongly; {seconds:.0f} s",
            flush=True,
        )
        return not self.judge.differences and not self.problems

    def show(self, difference: Difference) -> None:
        number, variant = difference.number, self.variants[difference.number]
        direct = [turn.session for turn in self.judge.turns.get(("d", number), [])]
        print(f"  {difference.why}: {variant.kind}, {variant.name}")
        print(f"    sent    {variant.filled(number).http1(f'{difference.way}{number}')[:600]!r}")
        print(f"    backend read {difference.turn.session!r} on {difference.turn.route!r}, straight {direct!r}; user {difference.turn.user!r}, from {difference.turn.forwarded!r}")
        print(f"    status  {self.statuses.get((difference.way, number))}", flush=True)


async def tried(server: Server, folder: Path) -> bool:
    """Tries one server."""
    began = time.monotonic()
    (folder / server.name).mkdir()
    async with Redis() as redis:
        bench = Bench(server, redis, folder / server.name)
        await bench.run()
    return bench.report(time.monotonic() - began)


async def all_of(servers: list[Server]) -> bool:
    """Tries them, two at a time."""
    places = asyncio.Semaphore(2)

    async def one(server: Server, folder: Path) -> bool:
        async with places:
            return await tried(server, folder)

    with tempfile.TemporaryDirectory(prefix="differential-") as folder:
        jobs: list[Awaitable[bool]] = [one(server, Path(folder)) for server in servers]
        return all(await asyncio.gather(*jobs))


def main() -> int:
    names = sys.argv[1:]
    if unknown := set(names) - {server.name for server in SERVERS}:
        print(f"no such server: {', '.join(sorted(unknown))}; there are {', '.join(server.name for server in SERVERS)}")
        return 2
    servers = [server for server in SERVERS if not names or server.name in names]
    print(f"seed {SEED}, {CASES} generated requests for each server besides {len(table())} of the table", flush=True)
    began = time.monotonic()
    well = asyncio.run(all_of(servers))
    print(f"{'no difference' if well else 'DIFFERENCES'} in {time.monotonic() - began:.0f} s, seed {SEED}")
    return 0 if well else 1

if __name__ == "__main__":
    sys.exit(main())

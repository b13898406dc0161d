"""The cases: what each backend must show behind its preset. What ran when is read in the record, never asked of the proxy."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import Call, Client, Exchange
from protocol import Backend
from proxy import problem, proxy
from record import LIMIT, Record, Run, until

# Turns in the case `sequential`.
SEQUENTIAL = 100
# Turns in the case `together`.
TOGETHER = 5
# Clients that leave in the case `left`, for each way to begin a turn.
LEAVES = 5


class Wrong(Exception):
    """A case came out otherwise than it must; the text says what was seen."""


@dataclass(frozen=True)
class Turn:
    """A turn that a case sends: its name in the record, and the session's."""

    name: str
    session: str
    # The backend's own handle of the session, as `Backend.session` returned it.
    handle: Any
    work: float

    @property
    def text(self) -> str:
        return f"turn={self.name} session={self.session} work={self.work}"


class Cases:
    """The cases of one backend that runs at `port`."""

    def __init__(self, backend: Backend, port: int, record: Record, folder: Path) -> None:
        self.backend, self.port, self.record, self.folder = backend, port, record, folder
        self.turns, self.sessions = itertools.count(1), itertools.count(1)

    # === sessions and turns ===

    @asynccontextmanager
    async def through(self, options: str = "") -> AsyncIterator[Client]:
        """A client of a proxy with these options beside the preset."""
        async with proxy(self.backend, options, self.port, self.folder) as url, Client(url, self.backend.goes_on) as client:
            yield client

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[Client]:
        """A client of a proxy where a second turn doesn't wait."""
        async with self.through("blocking = false" if self.backend.blocking else "") as client:
            yield client

    @asynccontextmanager
    async def queueing(self) -> AsyncIterator[Client]:
        """A client of a proxy where a second turn waits."""
        async with self.through("" if self.backend.blocking else "blocking = true") as client:
            yield client

    def direct(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", self.backend.goes_on)

    async def open(self, client: Client) -> Turn:
        """The first turn of a new session, not sent yet."""
        name = f"s{next(self.sessions)}"
        return Turn(f"t{next(self.turns)}", name, await self.backend.session(client, name), 1.0)

    def next(self, turn: Turn, work: float) -> Turn:
        """Another turn of the same session."""
        return Turn(f"t{next(self.turns)}", turn.session, turn.handle, work)

    def send(self, client: Client, turn: Turn, way: str | None = None) -> Exchange:
        way = next(iter(self.backend.ways)) if way is None else way
        return client.begin(self.backend.call(turn.handle, turn.text, way))

    async def working(self, client: Client, turn: Turn, way: str | None = None) -> Exchange:
        """Sends a turn, and waits until it works: with a part of its response where one comes in pieces."""
        exchange = self.send(client, turn, way)
        await until(lambda: self.record.of(turn.name) or exchange.is_over, f"{turn.name} begins at the backend")
        if exchange.is_over:
            raise Wrong(f"{turn.name} was over at once: {exchange}")
        if self.backend.ways[next(iter(self.backend.ways)) if way is None else way]:
            await until(lambda: f"{turn.name} piece" in exchange.text or exchange.is_over, f"a piece of the response to {turn.name}")
        return exchange

    async def insist(self, client: Client, turn: Turn, call: Callable[[Turn], Call]) -> tuple[Turn, Exchange]:
        """Sends turns of this session until one isn't refused, and waits for its response."""
        async with asyncio.timeout(LIMIT):
            while True:
                turn = self.next(turn, 0.1)
                exchange = await client.begin(call(turn)).over()
                if not self.backend.refused(exchange):
                    return turn, exchange
                await asyncio.sleep(0.02)

    # === what must hold ===

    def worked(self, exchange: Exchange, turn: Turn) -> None:
        if not self.backend.worked(exchange, turn.name):
            raise Wrong(f"{turn.name} should work: {exchange}")

    def once(self, turn: Turn) -> Run:
        """The only run of a turn, which must have ended."""
        runs = self.record.of(turn.name)
        if len(runs) != 1 or runs[0].end is None or runs[0].cancelled:
            raise Wrong(f"{turn.name} should run once, to its end; the backend saw: {listed(runs)}")
        return runs[0]

    def apart(self, session: str) -> None:
        """No two turns of a session worked at the same time."""
        if pairs := self.record.overlapping(session):
            raise Wrong(f"{len(pairs)} overlaps at the backend, first: {listed(pairs[0])}")

    def refused(self, exchange: Exchange, turn: Turn) -> None:
        """The turn was refused, and the backend never saw it."""
        if not self.backend.refused(exchange):
            raise Wrong(f"{turn.name} should be refused: {exchange}; the backend saw: {listed(self.record.runs(turn.session))}")
        if runs := self.record.of(turn.name):
            raise Wrong(f"the backend saw {turn.name}, which was refused: {listed(runs)}")

    # === the cases ===

    async def normal(self) -> str:
        """One turn has the same response with and without the proxy."""
        async with self.direct() as direct, self.through() as client:
            for way in self.backend.ways:
                seen = []
                for each in (direct, client):
                    turn = await self.open(each)
                    exchange = await self.send(each, turn, way).over()
                    self.worked(exchange, turn)
                    self.once(turn)
                    seen.append((exchange.status, exchange.headers.get("content-type"), self.backend.masked(exchange, turn.name, turn.session)))
                if seen[0] != seen[1]:
                    raise Wrong(f"{way}: without the proxy {seen[0]}, through it {seen[1]}")
        return "same"

    async def refusal(self) -> str:
        """A second turn is refused while the first works."""
        async with self.refusing() as client:
            for way in self.backend.ways:
                first = await self.open(client)
                running = await self.working(client, first, way)
                second = self.next(first, 0.1)
                exchange = await self.send(client, second, way).over()
                if self.record.of(first.name)[0].end is not None:
                    raise Wrong(f"{way}: the first turn was over before the second was answered: {exchange}")
                self.refused(exchange, second)
                self.worked(await running.over(), first)
                self.once(first)
        return f"{exchange.status}"

    async def queued(self) -> str:
        """A second turn waits for the first."""
        async with self.queueing() as client:
            first = await self.open(client)
            running = await self.working(client, first)
            second = self.next(first, 0.3)
            waiting = self.send(client, second)
            for exchange, turn in ((running, first), (waiting, second)):
                self.worked(await exchange.over(), turn)
            one, other = self.once(first), self.once(second)
            if one.end is None or waiting.sent > one.end:
                raise Wrong("the second turn was sent too late to wait")
            self.apart(first.session)
            if [run.turn for run in self.record.runs(first.session)] != [first.name, second.name]:
                raise Wrong(f"another order: {listed([one, other])}")
        return "in order"

    async def together(self) -> str:
        """Turns of one session, sent at once, with the preset's own waiting: each works or is refused, and none beside another."""
        async with self.through() as client:
            first = await self.open(client)
            turns = [self.next(first, 0.5) for _ in range(TOGETHER)]
            exchanges = [self.send(client, turn) for turn in turns]
            worked = 0
            for exchange, turn in zip(exchanges, turns):
                if self.backend.refused(await exchange.over()):
                    self.refused(exchange, turn)
                else:
                    self.worked(exchange, turn)
                    self.once(turn)
                    worked += 1
            self.apart(first.session)
            if worked != TOGETHER if self.backend.blocking else worked == 0:
                raise Wrong(f"{worked} of {TOGETHER} worked")
        return f"{worked} of {TOGETHER} worked"

    async def left(self) -> str:
        """The client of a turn leaves in the middle and sends again: no overlap, and the second turn runs."""
        late: dict[str, float] = {}
        async with self.through() as client:
            # More than once: how soon a backend notices it is a matter of luck.
            for way in [way for way in self.backend.ways for _ in range(LEAVES)]:
                leaving = self.backend.leaving(way)
                first = self.next(await self.open(client), 2.0 if leaving == "cancels" else 0.5)
                running = await self.working(client, first, way)
                await running.leave()
                gone = time.time()
                second, exchange = await self.insist(client, first, lambda turn: self.backend.call(turn.handle, turn.text, way))
                self.worked(exchange, second)
                run = await self.record.over(first.name)
                self.once(second)
                self.apart(first.session)
                late[leaving] = max(late.get(leaving, 0.0), (run.end or gone) - gone)
                if run.cancelled != (leaving == "cancels"):
                    raise Wrong(f"{way}: the backend should be one that {leaving}: {run}")
        cells = {"cancels": f"cancels after {late.get('cancels', 0.0) * 1000:.0f} ms", "continues": "continues"}
        return ", ".join(cells[leaving] for leaving in late)

    async def interrupt(self) -> str:
        """A newer turn replaces the running one, where the preset allows that."""
        options = "interrupt = true" if self.backend.blocking else "blocking = true\ninterrupt = true"
        wrong = await problem(self.backend, options, self.folder)
        if not self.backend.interrupts:
            if wrong is None:
                raise Wrong("interrupt = true beside the preset should be refused")
            return "not allowed"
        if wrong is not None:
            raise Wrong(f"interrupt = true beside the preset should be allowed: {wrong}")
        async with self.through(options) as client:
            for way in self.backend.ways:
                first = await self.open(client)
                first = self.next(first, 5.0)
                running = await self.working(client, first, way)
                second = self.next(first, 0.3)
                self.worked(await self.send(client, second, way).over(), second)
                await running.over()
                run = await self.record.over(first.name)
                if not run.cancelled:
                    raise Wrong(f"{way}: the older turn should be cancelled: {run}")
                self.once(second)
                self.apart(first.session)
        return "newer runs"

    async def sequential(self) -> str:
        """Turns of one session, each sent as soon as a client may go on: none is refused."""
        async with self.through() as client:
            turn = await self.open(client)
            refused, other = 0, []
            for _ in range(SEQUENTIAL):
                turn = self.next(turn, 0.0)
                exchange = await self.send(client, turn).over()
                if self.backend.refused(exchange):
                    refused += 1
                elif not self.backend.worked(exchange, turn.name):
                    other.append(f"{turn.name}: {exchange}")
            if refused or other:
                raise Wrong(f"{refused} of {SEQUENTIAL} refused; {len(other)} other responses, first: {listed(other[:1])}")
            self.apart(turn.session)
            if (ran := len(self.record.runs(turn.session))) != SEQUENTIAL:
                raise Wrong(f"the backend saw {ran} of {SEQUENTIAL} turns")
        return f"{SEQUENTIAL}, refused 0"

    async def parallel(self) -> str:
        """Turns of several sessions work at the same time."""
        async with self.through() as client:
            turns = [self.next(await self.open(client), 2.0) for _ in range(self.backend.sessions)]
            exchanges = [self.send(client, turn) for turn in turns]
            for exchange, turn in zip(exchanges, turns):
                self.worked(await exchange.over(), turn)
            runs = [self.once(turn) for turn in turns]
            if max(run.begin for run in runs) >= min(run.end for run in runs if run.end):
                raise Wrong(f"there is no moment when all work: {listed(runs)}")
        return f"{len(runs)} at once"

    async def spellings(self) -> str:
        """Each way to name one session meets the same lock."""
        tried = 0
        async with self.refusing() as client:
            names = list(self.backend.spellings((await self.open(client)).handle, ""))
            for name in names:
                first = await self.open(client)

                def spelt(turn: Turn) -> Call:
                    return self.backend.spellings(turn.handle, turn.text)[name]

                running = await self.working(client, first)
                second = self.next(first, 0.1)
                try:
                    self.refused(await client.begin(spelt(second)).over(), second)
                    self.worked(await running.over(), first)
                    # The backend takes it for the same session, or this says nothing.
                    third, exchange = await self.insist(client, first, spelt)
                    self.worked(exchange, third)
                except Wrong as wrong:
                    raise Wrong(f"{name}: {wrong}") from None
                owners = {self.once(turn).owner for turn in (first, third)}
                if len(owners) != 1:
                    raise Wrong(f"{name}: the backend sees two sessions: {owners}")
                self.apart(first.session)
                tried += 1
        return f"{tried} met" if tried else "-"

    ALL = {
        "normal": normal,
        "refused": refusal,
        "queued": queued,
        "together": together,
        "left": left,
        "interrupt": interrupt,
        "sequential": sequential,
        "parallel": parallel,
        "spellings": spellings,
    }


def listed(things: object) -> str:
    """One line for each thing."""
    lines = [str(thing) for thing in things]  # type: ignore[attr-defined]
    return "\n      ".join(["", *lines]) if lines else "nothing"

"""Turns from outside: what clients get for many turns at once, and what the agent itself wrote about them."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from backends import load
from client import Call, Client, Exchange
from protocol import Backend
from readme import Wrong
from record import LIMIT, until

SESSIONS = 4
# Of one session, besides the one that runs.
MORE = 3


class Record:
    """What the agents of an example wrote: one line when a turn begins, one when it ends, in the order of events."""

    LINE = re.compile(r"(\S+) (begins|ends): (.*\S)")

    def __init__(self, logs: list[Path]) -> None:
        self.logs = logs

    def lines(self) -> list[tuple[str, str, str]]:
        lines = [line for log in self.logs for line in log.read_text(errors="replace").splitlines()]
        # Lines of several agents begin with their time.
        lines = sorted(lines) if len(self.logs) > 1 else lines
        return [match.groups() for line in lines if (match := self.LINE.search(line))]  # type: ignore[misc]

    def begun(self, text: str) -> bool:
        return any(what == "begins" and said == text for _, what, said in self.lines())

    def check(self) -> int:
        """No two turns of a session overlap. The value is how many turns of different sessions ran at the same time."""
        running: dict[str, str] = {}
        most = 0
        for session, what, text in self.lines():
            if what == "begins":
                if session in running:
                    raise Wrong(f"two turns of {session} at the same time: {running[session]!r} and {text!r}")
                running[session] = text
            elif running.pop(session, None) != text:
                raise Wrong(f"{text!r} of {session} ends, and didn't begin")
            most = max(most, len(running))
        if running:
            raise Wrong(f"turns that never end: {running}")
        return most

    def texts(self, session_of: str) -> list[str]:
        """What the turns of the same session as this one said, in the order in which they ran."""
        (session,) = {session for session, what, said in self.lines() if what == "begins" and said == session_of}
        return [said for name, what, said in self.lines() if name == session and what == "begins"]


async def waiting(admin: int) -> int:
    """How many turns wait at a sidecar."""

    def read() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/locks", timeout=10) as answer:
            return sum(lock["waiters"] for lock in json.load(answer)["locks"])

    return await asyncio.to_thread(read)


async def many(backend: Backend, clients: list[Client], record: Record, waits: bool, queued: Callable[[], Awaitable[int]] | None = None) -> None:
    """Several turns of several sessions at once, through each of the addresses in turn."""
    way = next(iter(backend.ways))
    name = lambda session, turn: f"many s{session} t{turn}"  # noqa: E731
    ids = [await backend.session(clients[0], f"many-{session}") for session in range(SESSIONS)]

    def begin(session: int, turn: int) -> Exchange:
        return clients[turn % len(clients)].begin(backend.call(ids[session], name(session, turn), way))

    first = [begin(session, 0) for session in range(SESSIONS)]
    for session in range(SESSIONS):
        await until(lambda session=session: record.begun(name(session, 0)), f"{name(session, 0)} begins")
    more: list[list[Exchange]] = [[] for _ in range(SESSIONS)]
    for turn in range(1, MORE + 1):
        for session in range(SESSIONS):
            more[session].append(begin(session, turn))
        if queued:
            # The next turns come when these are in their queues, or have left them to run.
            async with asyncio.timeout(LIMIT):
                while await queued() + sum(record.begun(name(s, t)) for s in range(SESSIONS) for t in range(1, turn + 1)) < turn * SESSIONS:
                    await asyncio.sleep(0.01)
    for exchange in (*first, *(exchange for some in more for exchange in some)):
        await exchange.over()
    for session in range(SESSIONS):
        good = [first[session], *(more[session] if waits else ())]
        if wrong := next((exchange for exchange in good if exchange.status != 200), None):
            raise Wrong(f"a turn that must have run: {wrong}")
        if not waits and (wrong := next((exchange for exchange in more[session] if not backend.refused(exchange)), None)):
            raise Wrong(f"a turn that must have been refused: {wrong}")
        expected = [name(session, turn) for turn in range(MORE + 1 if waits else 1)]
        if (texts := record.texts(expected[0])) != expected:
            raise Wrong(f"the agent ran {texts}, and not {expected}")
        again = await begin(session, 9).over()
        if again.status != 200:
            raise Wrong(f"the session must be free: {again}")


class Chat(Backend):
    """The example fastapi."""

    def call(self, session: Any, text: str, way: str) -> Call:
        return Call("/chat", json={"session_id": session, "input": text})

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


class Mcp(type(load("fastmcp-2026"))):  # type: ignore[misc]
    """The example mcp: a tool whose argument names the session."""

    async def session(self, client: Client, name: str) -> str:
        return name

    def call(self, session: str, text: str, way: str) -> Call:
        return self.tool("write", {"text": text, "session_id": session})


class AiSdk(type(load("vercel-ai-6"))):  # type: ignore[misc]
    """The example ai-sdk, which has one way to begin a turn."""

    ways = {"": True}

    def call(self, session: str, text: str, way: str) -> Call:
        return Call("/api/chat", json=self.body(session, text))

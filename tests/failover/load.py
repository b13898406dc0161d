"""The load: a backend that records its turns, and the clients that send them through the replicas of the proxy."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
LAST = b"0\r\n\r\n"

# A pause of a session that counts as one: it is longer than what a busy machine needs from one turn to the next.
PAUSE = 0.5


@dataclass(eq=False)
class Turn:
    """One turn at the backend. Times are seconds of the monotonic clock."""

    session: str
    name: str
    begin: float
    # None while it works.
    end: float | None = None
    is_complete: bool = False


@dataclass
class Backend:
    """Works on each turn for as long as the turn says, or until its connection ends."""

    turns: list[Turn] = field(default_factory=list)
    _working: dict[Turn, tuple[asyncio.StreamReader, socket.socket]] = field(default_factory=dict)

    async def start(self) -> int:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        # A turn whose connection has ended works no more, even if its task has yet to see that.
        for turn, (other, copy) in self._working.items():
            if turn.end is None and turn.session == headers["x-session"] and has_ended(other, copy):
                turn.end = time.monotonic()
        turn = Turn(headers["x-session"], headers["x-name"], time.monotonic())
        self.turns.append(turn)
        # asyncio doesn't let others look at its sockets.
        copy = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        self._working[turn] = (reader, copy)
        try:
            writer.write(HEAD + b"5\r\nbegin\r\n")
            work = asyncio.ensure_future(asyncio.sleep(float(headers["x-work"])))
            gone = asyncio.ensure_future(reader.read())
            done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            turn.is_complete = gone not in done
            work.cancel()
            turn.end = turn.end or time.monotonic()
            if turn.is_complete:
                writer.write(b"3\r\nend\r\n" + LAST)
                await writer.drain()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        except OSError:
            turn.end = turn.end or time.monotonic()
        finally:
            del self._working[turn]
            copy.close()
            writer.close()

    def overlaps(self) -> list[tuple[Turn, Turn]]:
        """The pairs of turns of a session that worked at the same time."""
        found = []
        for session in {turn.session for turn in self.turns}:
            open_turns: list[Turn] = []
            for turn in (turn for turn in self.turns if turn.session == session):
                open_turns = [other for other in open_turns if (other.end or float("inf")) > turn.begin]
                found += [(other, turn) for other in open_turns]
                open_turns.append(turn)
        return found

    def pauses(self, session: str, since: float, until: float) -> list[tuple[float, float]]:
        """When this session had no turn for a while, though clients wanted some."""
        free, found = since, []
        for turn in (turn for turn in self.turns if turn.session == session and turn.begin < until):
            if turn.begin - max(free, since) > PAUSE:
                found.append((max(free, since), turn.begin))
            free = max(free, turn.end or float("inf"))
        if until - free > PAUSE:
            found.append((free, until))
        return [(begin, end) for begin, end in found if end > since]


def has_ended(reader: asyncio.StreamReader, copy: socket.socket) -> bool:
    """Whether the other side has closed this connection."""
    if reader.at_eof() or reader.exception():
        return True
    try:
        return copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@dataclass
class Clients:
    """Clients that send one turn after another, each for one session, through any replica of the proxy."""

    proxies: list[int]
    sessions: list[str]
    short: float
    long: float
    # How turns ended: "complete", "cut", "refused", and each refusal with its status and code.
    ends: Counter[str] = field(default_factory=Counter)
    # When they were refused or cut.
    times: list[tuple[float, str]] = field(default_factory=list)
    _count: int = 0

    async def run(self, count: int, until: float, limit: float) -> None:
        """Sends turns until this time. A turn that takes longer than the limit after it ends as "given up"."""
        clients = [asyncio.ensure_future(self._client(number, until)) for number in range(count)]
        _, late = await asyncio.wait(clients, timeout=until - time.monotonic() + limit)
        for client in late:
            client.cancel()
            self.ends["given up"] += 1
        await asyncio.gather(*clients, return_exceptions=True)
        for client in clients:
            if not client.cancelled() and client.exception():
                raise client.exception()  # type: ignore[misc]

    async def _client(self, number: int, until: float) -> None:
        while time.monotonic() < until:
            is_long = random.random() < 0.1
            end = await self.turn(self.sessions[number % len(self.sessions)], random.choice(self.proxies), self.long if is_long else self.short)
            self.ends[end.split(" ")[0]] += 1
            if end != "complete":
                self.ends[end] += " " in end
                self.times.append((time.monotonic(), end))
                await asyncio.sleep(0.1)

    async def turn(self, session: str, port: int, work: float) -> str:
        """Sends one turn; gives how it ended."""
        self._count += 1
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return "refused connection"
        try:
            writer.write(
                f"POST /turn HTTP/1.1\r\nhost: proxy\r\nx-session: {session}\r\nx-name: t{self._count}\r\nx-work: {work}\r\n"
                "content-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            response = b""
            try:
                while data := await reader.read(65536):
                    response += data
            except OSError:
                pass
            status = response[9:12].decode()
            if status == "200":
                return "complete" if response.endswith(LAST) else "cut"
            reason = response.partition(b"x-seriatim-error: ")[2].partition(b"\r\n")[0].decode()
            return f"{'cut' if reason == 'lock_lost' else 'refused'} {status or 'no response'} {reason}"
        finally:
            writer.close()

"""For fake agents and models in Python: a turn that works as long as its message says, and writes the record."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# As the runner's cases write it. Other text may stand around it.
MESSAGE = re.compile(r"turn=(?P<turn>[\w-]+) session=(?P<session>[\w-]+) work=(?P<work>[\d.]+)")
# Seconds between two pieces of a response.
PACE = 0.1

runs = itertools.count()


@dataclass(frozen=True)
class Turn:
    name: str
    session: str
    # Seconds.
    work: float

    @property
    def done(self) -> str:
        """The last words of a turn that ran to its end."""
        return f"{self.name} is done"

    def pieces(self) -> Iterator[str]:
        """What a turn says on its way, one piece for each pause."""
        for n in range(round(self.work / PACE)):
            yield f"{self.name} piece {n} "


def read(text: str) -> Turn | None:
    """The turn that a message means: the last one in the text, which may hold a whole history."""
    found = None
    for found in MESSAGE.finditer(text):
        pass
    return found and Turn(found["turn"], found["session"], float(found["work"]))


@contextmanager
def recorded(turn: Turn, owner: str | None = None) -> Iterator[None]:
    """Writes begin, and end or cancelled, of what runs within. `owner` is the backend's own name of the session."""
    run = f"{os.getpid()}-{next(runs)}"
    write("begin", run, turn, owner)
    try:
        yield
    except BaseException:
        write("cancelled", run, turn, owner)
        raise
    write("end", run, turn, owner)


def write(what: str, run: str, turn: Turn, owner: str | None) -> None:
    entry = {"what": what, "run": run, "turn": turn.name, "session": turn.session, "owner": owner, "time": time.time()}
    file = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(file)


async def stream(text: str, owner: str | None = None) -> AsyncIterator[str]:
    """The pieces of a turn as it works, and then its last words."""
    turn = read(text)
    if turn is None:
        yield "no turn"
        return
    with recorded(turn, owner):
        for piece in turn.pieces():
            yield piece
            await asyncio.sleep(PACE)
    # The work is over; some callers don't ask for more after these words.
    yield turn.done


async def answer(text: str, owner: str | None = None) -> str:
    """The same as one text, at the end."""
    return "".join([piece async for piece in stream(text, owner)])


def answer_blocking(text: str, owner: str | None = None) -> str:
    """The same for an agent that blocks its thread."""
    turn = read(text)
    if turn is None:
        return "no turn"
    with recorded(turn, owner):
        said = []
        for piece in turn.pieces():
            said.append(piece)
            time.sleep(PACE)
        return "".join([*said, turn.done])

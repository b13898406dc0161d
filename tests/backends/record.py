"""What the fake agents wrote: when each turn began at the backend, and when it ended or was cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# For something to appear in the record, on a machine that is busy.
LIMIT = 30.0


class Late(Exception):
    """What a case waited for did not happen within its limit."""


@dataclass
class Run:
    """One run of a turn at the backend. Times are seconds since the epoch."""

    turn: str
    session: str
    # The backend's own name of the session, where the agent knows it.
    owner: str | None
    begin: float
    # None while it works.
    end: float | None = None
    cancelled: bool = False

    def overlaps(self, other: Run) -> bool:
        return self.begin < (other.end or float("inf")) and other.begin < (self.end or float("inf"))

    def __str__(self) -> str:
        end = "still works" if self.end is None else f"{'cancelled' if self.cancelled else 'ended'} {self.end % 1000:.3f}"
        return f"{self.turn} of {self.owner or self.session}: began {self.begin % 1000:.3f}, {end}"


class Record:
    """The file that the fake agents append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def runs(self, session: str | None = None) -> list[Run]:
        """All runs in the order in which they began; with a session, those of this session."""
        runs: dict[str, Run] = {}
        for line in self.path.read_text().splitlines():
            entry = json.loads(line)
            if entry["what"] == "begin":
                runs[entry["run"]] = Run(entry["turn"], entry["session"], entry["owner"], entry["time"])
            else:
                run = runs[entry["run"]]
                run.end, run.cancelled = entry["time"], entry["what"] == "cancelled"
        return [run for run in runs.values() if session is None or run.session == session]

    def of(self, turn: str) -> list[Run]:
        """The runs of a turn: none if the backend never saw it."""
        return [run for run in self.runs() if run.turn == turn]

    async def begun(self, turn: str) -> Run:
        await until(lambda: self.of(turn), f"{turn} begins at the backend")
        return self.of(turn)[0]

    async def over(self, turn: str) -> Run:
        """Waits until the turn has ended or was cancelled."""
        await until(lambda: self.of(turn) and self.of(turn)[0].end, f"{turn} ends or is cancelled at the backend")
        return self.of(turn)[0]

    def overlapping(self, session: str) -> list[tuple[Run, Run]]:
        """The pairs of runs of a session that worked at the same time."""
        runs = self.runs(session)
        return [(one, other) for n, one in enumerate(runs) for other in runs[n + 1 :] if one.overlaps(other)]


async def until(condition: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Waits for a condition."""
    try:
        async with asyncio.timeout(limit):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Late(f"waited {limit:.0f} s in vain: {what}") from None

"""Who says whether proxy and backend saw one session: what the backend noted, and a lock that somebody else holds.

The proxy's word counts for nothing. What a backend reads when a request comes straight is a session whose lock is
then held by somebody else. The same bytes through the proxy may be refused, or may run nothing, or may run with no
session. If they run with a session that is held, the proxy has taken another lock or none. If they run with one that
nobody holds, it is held from then on, and they are sent once more.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from store import keys
from variant import Variant

CASE = re.compile(r"([a-z])(\d+)\Z")
# Ids carry their variant's number, for a turn whose server did not see the header that names it.
TEXT_ID = re.compile(r"s(\d+)[ab]")
PEER = "127.0.0.1"


@dataclass(frozen=True)
class Turn:
    """A turn that a backend ran."""

    route: str
    user: str
    session: str | None
    forwarded: str | None
    # Read as it was spelt: then what it decodes to is the same lock, whichever way it is spelt.
    undecoded: bool
    # Read with spaces for `+`: then the same with `+` is its lock, for an encoded space is refused there.
    plus: bool

    def keys(self) -> set[bytes]:
        if not self.session:
            return set()
        names = keys(self.user, self.session)
        if self.undecoded:
            names |= keys(self.user, unquote(self.session))
        if self.plus:
            names |= keys(self.user, self.session.replace(" ", "+"))
        # A cookie's quotes are kept by some; what has them encoded is refused.
        if self.route == "cookie" and self.session[:1] == self.session[-1:] == '"':
            names |= keys(self.user, unquote(self.session[1:-1]))
        # Folded further than by most who fold: each letter by itself, on the way over capitals.
        if self.route == "lower":
            names |= keys(self.user, "".join(map(str.lower, self.session.lower().upper())))
        return names


@dataclass(frozen=True)
class Difference:
    number: int
    way: str
    turn: Turn
    why: str


@dataclass
class Judge:
    """What one server's backend has noted."""

    records: Path
    variants: dict[int, Variant]
    undecoded: frozenset[str]
    plus: frozenset[str]
    offset: int = 0
    # By the way that a request went ("d" is straight), and its number.
    turns: dict[tuple[str, int], list[Turn]] = field(default_factory=lambda: defaultdict(list))
    held: set[bytes] = field(default_factory=set)
    differences: dict[tuple[int, str], Difference] = field(default_factory=dict)

    def read(self) -> dict[int, list[Turn]]:
        """Judges what was noted since the last time, and gives the turns whose session nobody holds yet."""
        free: dict[int, list[Turn]] = defaultdict(list)
        with self.records.open("rb") as records:
            records.seek(self.offset)
            new = records.read()
        new = new[: new.rfind(b"\n") + 1]
        self.offset += len(new)
        for line in new.splitlines():
            note = json.loads(line)
            way, number = self.origin(note)
            if number not in self.variants:
                continue
            turn = Turn(note["route"], note.get("user") or "unknown", note["session"], note.get("forwarded"), note["route"] in self.undecoded, note["route"] in self.plus)
            self.turns[way, number].append(turn)
            if way in "df":
                continue
            if "forwarded" in note and turn.forwarded not in (None, PEER):
                self.differs(number, way, turn, "the client says where it comes from")
            if turn.keys() & self.held:
                self.differs(number, way, turn, "a turn ran while its session was held")
            elif turn.session:
                free[number].append(turn)
        return free

    def origin(self, note: dict) -> tuple[str, int]:
        if found := CASE.match(note["case"] or ""):
            return found[1], int(found[2])
        found = TEXT_ID.search(note["session"] or "")
        return "?", int(found[1]) if found else 0

    def differs(self, number: int, way: str, turn: Turn, why: str) -> None:
        self.differences.setdefault((number, way), Difference(number, way, turn, why))

    def direct(self) -> set[bytes]:
        """The locks of every session that was read of what came straight."""
        return {key for (way, _), turns in self.turns.items() if way == "d" for turn in turns for key in turn.keys()}

    def ran(self, way: str, number: int) -> bool:
        return (way, number) in self.turns

    def counts(self) -> Counter[str]:
        return Counter(way for way, _ in self.turns)

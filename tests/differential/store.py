"""The Redis that the proxy has its locks in, and the keys that somebody else holds."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from process import free_port, started, stopped

HOLDER = b"somebody else"
# What an id's characters are in a key, by docs/sessions.md.
ENCODED = {code: f"%{code:02X}" for code in (*range(0x21), 0x7F, *map(ord, ":{}%"))}


def encoded(name: str) -> bytes:
    """An id as it stands in a key."""
    return name.translate(ENCODED).encode("utf-8", "surrogatepass")


def keys(user: str, session: str) -> set[bytes]:
    """The lock's names for what a backend has read: the plain one, and for a backend that decodes headers as
    Latin-1 the one that the same bytes give in UTF-8."""
    names = {b"lock:session:%b:%b" % (encoded(user), encoded(session))}
    try:
        session = session.encode("latin-1").decode("utf-8")
        user = user.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return names
    return names | {b"lock:session:%b:%b" % (encoded(user), encoded(session))}


class Redis:
    """A server of its own, on a port of its own."""

    async def __aenter__(self) -> Redis:
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="differential-")
        command = ("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder.name)
        self.server = await started(command, self.port, {}, Path(self.folder.name) / "log")
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await stopped(self.server)
        self.folder.cleanup()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def hold(self, names: set[bytes]) -> None:
        """Has somebody else hold these locks."""
        if not names:
            return
        words = [b"MSET", *(word for name in sorted(names) for word in (name, HOLDER))]
        self.writer.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        answer = await self.reader.readline()
        assert answer == b"+OK\r\n", answer

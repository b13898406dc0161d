"""A client of Redis: one command at a time."""

from __future__ import annotations

import asyncio
from typing import Any

# For a reply.
LIMIT = 5.0


class RespError(Exception):
    """An error that Redis replied."""


async def call(host: str, port: int, *words: object) -> Any:
    """Sends one command over a connection of its own; gives its reply."""
    async with asyncio.timeout(LIMIT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
            writer.write(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded))
            return await read(reader)
        finally:
            writer.close()


async def read(reader: asyncio.StreamReader) -> Any:
    line = (await reader.readuntil(b"\r\n"))[:-2]
    kind, rest = line[:1], line[1:]
    if kind == b"+":
        return rest.decode()
    if kind == b"-":
        raise RespError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else (await reader.readexactly(int(rest) + 2))[:-2].decode(errors="replace")
    if kind == b"*":
        return [await read(reader) for _ in range(int(rest))]
    raise RespError(f"reply can't be parsed: {line!r}")

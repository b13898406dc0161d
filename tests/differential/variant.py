"""One request in one spelling, with places for the ids that it names."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

HOST = b"backend.test"


@dataclass(frozen=True)
class Variant:
    """A request as a client would send it.

    `@A@` is the id that is meant, `@B@` another one; both are new for each variant. `@TAIL@` is A without
    its first character, and `@BARE@`, `@UPPER@` and `@BIG@` are A without hyphens, in capitals, and both.
    """

    kind: str
    name: str
    target: bytes
    lines: tuple[bytes, ...] = ()
    body: bytes | None = None
    method: bytes = b"POST"
    trailers: tuple[bytes, ...] = ()
    # What is done to the body once the ids are in it, such as compressing it.
    encode: Callable[[bytes], bytes] | None = None
    # What client libraries send. It passes where its session is free, so that no proxy passes this test by
    # refusing everything.
    honest: bool = False
    # "text", "uuid", "int" or "lower", a text that is read in lower case.
    ids: str = "text"

    def names(self, number: int) -> dict[bytes, bytes]:
        """The ids of this variant; `number` is one that no other variant has."""
        if self.ids == "uuid":
            # A letter in the last place, so that no spelling of it is a number.
            a, b = (str(uuid.UUID(int=(0xABCDEF << 104) + (number << 8) + last)) for last in (0xFA, 0xFB))
        elif self.ids == "int":
            a, b = f"1{number:06}1", f"1{number:06}2"
        else:
            a, b = f"s{number}a", f"s{number}b"
        bare = a.replace("-", "")
        names = {"A": a, "B": b, "TAIL": a[1:], "BARE": bare, "UPPER": a.upper(), "BIG": bare.upper()}
        return {f"@{name}@".encode(): value.encode() for name, value in names.items()}

    def filled(self, number: int) -> Request:
        """This variant with its ids."""
        names = self.names(number)

        def fill(text: bytes) -> bytes:
            if b"@" in text:
                for name, value in names.items():
                    text = text.replace(name, value)
            return text

        body = self.body if self.body is None else fill(self.body)
        return Request(
            method=self.method,
            target=fill(self.target),
            lines=tuple(map(fill, self.lines)),
            body=self.encode(body) if self.encode and body is not None else body,
            trailers=tuple(map(fill, self.trailers)),
        )


@dataclass(frozen=True)
class Request:
    """A request with its ids, as bytes."""

    method: bytes
    target: bytes
    lines: tuple[bytes, ...]
    body: bytes | None
    trailers: tuple[bytes, ...]

    def http1(self, case: str) -> bytes:
        """The bytes over HTTP/1.1; `case` is what the backend notes it under."""
        lines = [self.method + b" " + self.target + b" HTTP/1.1", b"host: " + HOST, b"x-case: " + case.encode()]
        lines += self.lines
        if not self.trailers:
            if self.body is not None:
                lines.append(b"content-length: %d" % len(self.body))
            return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"")
        lines.append(b"transfer-encoding: chunked")
        body = self.body or b""
        chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        end = b"".join(line + b"\r\n" for line in self.trailers)
        return b"\r\n".join(lines) + b"\r\n\r\n" + chunks + b"0\r\n" + end + b"\r\n"

    def http2(self, case: str) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
        """The fields of the head and of the trailers over HTTP/2."""
        head = [(b":method", self.method), (b":scheme", b"http"), (b":authority", HOST), (b":path", self.target)]
        head += [(b"x-case", case.encode()), *map(field, self.lines)]
        return head, list(map(field, self.trailers))


def field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value[1:] if value.startswith(b" ") else value

"""Connections to a server on loopback, over HTTP/1.1 and HTTP/2, with no opinion on what they carry."""

from __future__ import annotations

import asyncio
import re
import struct

import hpack

from variant import Request

# For an answer. What a server waits for in vain ends here.
PATIENCE = 3.0

CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


class Lane:
    """One request after another, on one connection for as long as both sides agree on where one ends."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def call(self, request: Request, case: str) -> int:
        """The answer's status; 0 if there was none."""
        for fresh in (self.writer is None, True):
            try:
                async with asyncio.timeout(PATIENCE):
                    status = await self.exchange(request, case)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
                status = 0
            if status != 200:
                self.close()
            # A server may end a connection that is idle: that says nothing about this request.
            if status != 0 or fresh:
                return status
        return 0

    async def open(self) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()
            self.reader = self.writer = None

    async def exchange(self, request: Request, case: str) -> int:
        await self.open()
        assert self.reader and self.writer
        self.writer.write(request.http1(case))
        head = b"HTTP/1.1 100"
        while head.startswith(b"HTTP/1.1 1"):
            head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        if request.method == b"HEAD" or status in (204, 304):
            pass
        elif CHUNKED.search(head):
            size = 1
            while size:
                size = int((await self.reader.readline()).split(b";")[0], 16)
                await self.reader.readexactly(size + 2)
        elif length := LENGTH.search(head):
            await self.reader.readexactly(int(length[1]))
        else:
            await self.reader.read()
            self.close()
        if CLOSES.search(head) or head.startswith(b"HTTP/1.0"):
            self.close()
        return status


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Lane2(Lane):
    """The same over HTTP/2 without TLS. It sends whatever it is given, also what no library would."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.stream = -1

    def close(self) -> None:
        super().close()
        self.stream = -1

    async def exchange(self, request: Request, case: str) -> int:
        await self.open()
        assert self.reader and self.writer
        if self.stream < 0:
            self.writer.write(PREFACE + frame(SETTINGS, 0, 0, b""))
            self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.stream += 2
        head, trailers = request.http2(case)
        bare = request.body is None and not trailers
        out = frame(HEADERS, END_HEADERS | (END_STREAM if bare else 0), self.stream, self.packed(head))
        if request.body is not None:
            out += frame(DATA, 0 if trailers else END_STREAM, self.stream, request.body)
        if trailers:
            out += frame(HEADERS, END_HEADERS | END_STREAM, self.stream, self.packed(trailers))
        self.writer.write(out)
        return await self.answer()

    def packed(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        return self.encoder.encode([hpack.NeverIndexedHeaderTuple(*field) for field in fields], huffman=False)

    async def answer(self) -> int:
        assert self.reader and self.writer
        status = 0
        while True:
            head = await self.reader.readexactly(9)
            size = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = await self.reader.readexactly(size)
            if kind == SETTINGS and not flags & ACK:
                self.writer.write(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.writer.write(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                raise EOFError
            elif stream == self.stream and kind == RST_STREAM:
                # Refused without an answer, or ended early: the body wasn't wanted.
                return status
            elif stream == self.stream and kind == HEADERS:
                fields = self.decoder.decode(payload)
                status = int(dict(fields).get(":status", status))
            if stream == self.stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                return status

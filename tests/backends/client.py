"""A client over HTTP that sees each part of a response as it comes, and can leave in the middle."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# For a whole response.
LIMIT = 60.0


@dataclass(frozen=True)
class Call:
    """A request. At most one of `json`, `form` and `data` is its body."""

    path: str
    json: Any = None
    # Sent as urlencoded.
    form: Mapping[str, str] | None = None
    # Bytes, or an aiohttp.FormData for multipart.
    data: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


class Exchange:
    """A request that is under way, and what has come of its response so far."""

    def __init__(self, call: Call, goes_on: Callable[[Exchange], bool]) -> None:
        self.call, self.goes_on = call, goes_on
        # When it was sent, in seconds since the epoch.
        self.sent = time.time()
        # None as long as there is no head.
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = b""
        # The response came to its end.
        self.complete = False
        # What broke it off.
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None

    async def run(self, http: aiohttp.ClientSession) -> None:
        call = self.call
        body = {"json": call.json} if call.json is not None else {"data": call.data if call.form is None else dict(call.form)}
        try:
            async with http.request(call.method, call.path, headers=call.headers, **body) as response:
                self.status, self.headers = response.status, response.headers
                async for piece in response.content.iter_any():
                    self.body += piece
                    if self.goes_on(self):
                        # As such clients do: they close the response, and don't wait for its end.
                        response.close()
                        return
                self.complete = True
        except aiohttp.ClientError as error:
            self.error = error

    async def over(self) -> Exchange:
        """Waits until a client of this protocol may go on."""
        assert self.task
        async with asyncio.timeout(LIMIT):
            await asyncio.wait([self.task])
        self.task.result()
        return self

    async def leave(self) -> None:
        """Closes the connection, however far the response is."""
        assert self.task
        self.task.cancel()
        await asyncio.wait([self.task])

    @property
    def is_over(self) -> bool:
        return bool(self.task and self.task.done())

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def events(self) -> list[str]:
        """The data of the complete server-sent events so far."""
        blocks = self.text.replace("\r\n", "\n").split("\n\n")[:-1]
        datas = ([line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")] for block in blocks)
        return ["\n".join(data) for data in datas if data]

    def __str__(self) -> str:
        end = "complete" if self.complete else f"broken off ({self.error!r})" if self.error else "not complete"
        reason = self.headers.get("x-seriatim-error", "-")
        return f"status {self.status}, x-seriatim-error {reason}, {end}, body {self.text[:300]!r}…{self.text[-200:]!r}"


class Client:
    """Sends requests to one address, over as many connections as it needs."""

    def __init__(self, url: str, goes_on: Callable[[Exchange], bool]) -> None:
        self.url, self.goes_on = url, goes_on

    async def __aenter__(self) -> Client:
        self.http = aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    def begin(self, call: Call) -> Exchange:
        """Sends a request, and returns at once."""
        exchange = Exchange(call, self.goes_on)
        exchange.task = asyncio.create_task(exchange.run(self.http))
        return exchange

    async def call(self, call: Call) -> Exchange:
        """Sends a request that is no turn, and waits for the whole response."""
        exchange = Exchange(call, lambda _: False)
        async with asyncio.timeout(LIMIT):
            await exchange.run(self.http)
        if exchange.status is None or exchange.status >= 400:
            raise RuntimeError(f"{call.method} {call.path}: {exchange}")
        return exchange

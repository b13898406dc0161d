"""The network between the servers, which can cut one off from the others but not from its clients.

Each server listens on a loopback address of its own and announces a port of 127.0.0.1, where this network listens for it.
Servers connect from their own address, and everybody else from 127.0.0.1: so the address of a connection tells whether it
is one between servers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Network:
    def __init__(self) -> None:
        self._cut: set[str] = set()
        self._fronts: list[asyncio.Server] = []
        self._flows: set[Flow] = set()

    async def front(self, host: str, port: int, source: str | None = None) -> int:
        """Listens for a server; gives the port on 127.0.0.1. `source` is who connects to it; None: their addresses tell."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            flow = Flow(source or writer.get_extra_info("peername")[0], host)
            self._flows.add(flow)
            try:
                await flow.run(self, reader, writer, port)
            finally:
                self._flows.discard(flow)

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._fronts.append(listener)
        return listener.sockets[0].getsockname()[1]

    def cut(self, host: str) -> None:
        """From now on, nothing arrives between this one and the others. Their connections stay open."""
        self._cut.add(host)

    def heal(self, host: str) -> None:
        """Ends the connections that were silent, so that servers connect again."""
        for flow in list(self._flows):
            if flow.is_cut(self._cut):
                flow.close()
        self._cut.discard(host)

    def blocks(self, flow: Flow) -> bool:
        return flow.is_cut(self._cut)

    def close(self) -> None:
        for listener in self._fronts:
            listener.close()
        for flow in list(self._flows):
            flow.close()


class Flow:
    """One connection to a server."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = source, target
        self._task = asyncio.current_task()

    def is_cut(self, cut: set[str]) -> bool:
        return self.source != "127.0.0.1" and (self.source in cut or self.target in cut)

    def close(self) -> None:
        if self._task:
            self._task.cancel()

    async def run(self, network: Network, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        with suppress(OSError, asyncio.CancelledError):
            try:
                await self._passes(network)
                there_reader, there = await asyncio.open_connection(self.target, port)
                try:
                    await self._both(network, (reader, there), (there_reader, writer))
                finally:
                    there.transport.abort()
            finally:
                writer.transport.abort()

    async def _both(self, network: Network, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        pumps = [asyncio.ensure_future(self._pump(network, *way)) for way in ways]
        try:
            # The end of one way is the end of the connection.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()

    async def _pump(self, network: Network, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._passes(network)
                writer.write(data)
                await writer.drain()
        # Not told while nothing arrives.
        await self._passes(network)

    async def _passes(self, network: Network) -> None:
        while network.blocks(self):
            await asyncio.sleep(0.02)

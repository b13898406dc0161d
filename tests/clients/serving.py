"""What the backends of the clients' tests have in common: a port, gates, and a record of their turns.

A backend prints its port as soon as connections to it are accepted.
"""

import asyncio
import json
import socket
from collections import defaultdict
from contextlib import contextmanager

import uvicorn
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


class Turns:
    """Which turns of each session there were, how they ended, and how many ran at once."""

    def __init__(self):
        self.gates = defaultdict(lambda: asyncio.Semaphore(0))
        self.turns = defaultdict(list)
        self.running = defaultdict(int)
        self.most = defaultdict(int)

    @contextmanager
    def turn(self, session, **what):
        """Records a turn. It was `left` if its caller went before the end."""
        record = {**what, "end": "running"}
        self.turns[session].append(record)
        self.running[session] += 1
        self.most[session] = max(self.most[session], self.running[session])
        try:
            yield
            record["end"] = "whole"
        except (asyncio.CancelledError, GeneratorExit):
            record["end"] = "left"
            raise
        finally:
            self.running[session] -= 1

    async def gate(self, session):
        """Waits for a `POST /go/{session}`: so an event is only sent after the one before was read."""
        await self.gates[session].acquire()

    def routes(self):
        async def go(request):
            self.gates[request.path_params["session"]].release()
            return JSONResponse({})

        async def seen(request):
            session = request.path_params["session"]
            return JSONResponse({"turns": self.turns[session], "most": self.most[session]})

        return [
            Route("/go/{session}", go, methods=["POST"]),
            Route("/seen/{session}", seen, methods=["GET"]),
        ]


def sse(events, **options):
    """An answer of server-sent events."""
    return StreamingResponse(events, media_type="text/event-stream", **options)


def data(value, event=None):
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


def port():
    """A socket on a free port of the loopback interface, which is told."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    return listener


def serve(app):
    """Serves an ASGI application until the process is ended."""
    config = uvicorn.Config(app, log_level="warning")
    uvicorn.Server(config).run(sockets=[port()])

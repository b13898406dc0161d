"""An agent that pages of http://127.0.0.1 may call from any port, with credentials, and no others."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from serving import Turns, data, serve, sse

turns = Turns()


def stream(session):
    async def pieces():
        with turns.turn(session):
            for number in range(2):
                yield data({"n": number})
                await turns.gate(session)

    return sse(pieces())


async def chat(request):
    return stream((await request.json())["session_id"])


async def events(request):
    return stream(request.query_params["session"])


cors = Middleware(
    CORSMiddleware,
    allow_origin_regex=r"http://127\.0\.0\.1:\d+",
    allow_credentials=True,
    allow_methods=["POST"],
    allow_headers=["content-type"],
)
routes = [
    Route("/chat", chat, methods=["POST"]),
    Route("/events", events),
    *turns.routes(),
]
serve(Starlette(routes=routes, middleware=[cors]))

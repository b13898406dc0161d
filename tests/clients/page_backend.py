"""A page with an agent behind it: server-sent events at /events, turns at /chat, a socket at /ws."""

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute

from serving import Turns, data, serve, sse

turns = Turns()


async def page(_request):
    return HTMLResponse("<!doctype html><title>An agent</title>", headers={"x-frame-options": "DENY"})


async def events(request):
    """Two events, and then the end; after the second reconnection: no more."""
    session = request.query_params["session"]
    last = int(request.headers.get("last-event-id", 0))
    if last >= 4:
        return Response(status_code=204)

    async def two():
        with turns.turn(session, last=last):
            yield "retry: 10\n: a comment\n\n"
            for number in [last + 1, last + 2]:
                kind = "event: tick\n" if number % 2 == 0 else ""
                yield f"id: {number}\n{kind}data: 第{number}\ndata: line two\n\n"
                await turns.gate(session)

    return sse(two(), headers={"cache-control": "no-store"})


async def chat(request):
    session = (await request.json())["session_id"]

    async def pieces():
        with turns.turn(session):
            for number in range(3):
                yield data({"n": number})
                await turns.gate(session)

    return sse(pieces(), headers={"x-custom": "a, b"})


async def socket(connection):
    """Echoes until it is told to close."""
    await connection.accept(subprotocol=connection.scope["subprotocols"][0])
    while (message := await connection.receive_text()) != "close":
        await connection.send_text(message)
    await connection.close(4001, "as you like 好的")


serve(
    Starlette(
        routes=[
            Route("/", page),
            Route("/events", events),
            Route("/chat", chat, methods=["POST"]),
            WebSocketRoute("/ws/{session}", socket),
            *turns.routes(),
        ]
    )
)

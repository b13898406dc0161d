"""An agent that is talked to over WebSockets: /ws/{session}. Echoes, and obeys a few words."""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from serving import port


async def agent(connection):
    try:
        while True:
            await obey(connection, await connection.recv())
    except ConnectionClosed:
        closed[connection.request.path] = (int(connection.close_code), connection.close_reason)


async def obey(connection, message):
    match message.split(" ", 2) if isinstance(message, str) else ["echo"]:
        case ["ping"]:
            await (await connection.ping(b"are you there"))
            await connection.send("pong came")
        case ["close", code, reason]:
            await connection.close(int(code), reason)
        case ["fragments"]:
            await connection.send(["in ", "three ", "pieces"])
        case ["extensions"]:
            await connection.send(repr(connection.protocol.extensions))
        case _:
            await connection.send(message)


closed = {}


def answer(connection, request):
    """`GET /closed/...` tells how the client closed; `/ws/forbidden` is refused."""
    if request.path == "/ws/forbidden":
        return connection.respond(403, "not you\n")
    if request.path.startswith("/closed/"):
        return connection.respond(200, repr(closed.get(request.path.removeprefix("/closed"))))


def chosen(connection, offered):
    return "chat.v2" if "chat.v2" in offered else None


async def main():
    options = {"process_request": answer, "select_subprotocol": chosen, "max_size": 2**22}
    server = await serve(agent, sock=port(), **options)
    await server.serve_forever()


asyncio.run(main())

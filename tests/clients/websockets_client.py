"""The `websockets` package against URL. Prints what it saw, as JSON.

Usage: websockets_client.py URL observe|contend. `observe` is the same with the proxy between and
without; `contend` is what a session's lock makes of two connections at once.
"""

import asyncio
import hashlib
import json
import sys

import httpx2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

URL = sys.argv[1]
SOCKET = URL.replace("http", "ws", 1) + "/ws"


async def until_equal(path, wanted):
    async with asyncio.timeout(20), httpx2.AsyncClient() as client:
        while (text := (await client.get(URL + path)).text) != wanted:
            await asyncio.sleep(0.01)
    return text


async def observe():
    saw = {}
    offered = ["chat.v3", "chat.v2"]
    async with connect(f"{SOCKET}/a?q=%20x", subprotocols=offered, max_size=2**22) as socket:
        saw["handshake"] = [socket.response.status_code, socket.subprotocol, repr(socket.protocol.extensions)]
        await socket.send("extensions")
        saw["extensions"] = await socket.recv()
        saw["echo"] = []
        for message in ["你好", b"\x00\xff", "", "x" * 70_000]:
            await socket.send(message)
            answer = await socket.recv()
            saw["echo"].append([type(answer).__name__, len(answer), answer == message])
        # A megabyte that can't be compressed, both ways.
        large = b"".join(hashlib.sha256(bytes([n, m])).digest() for n in range(128) for m in range(256))
        await socket.send(large)
        saw["large"] = [len(large), await socket.recv() == large]
        await socket.send("fragments")
        saw["fragments"] = [piece async for piece in socket.recv_streaming()]
        await socket.send(["sent ", "in ", "pieces"])
        saw["sent"] = await socket.recv()
        await (await socket.ping(b"hello"))
        saw["ping"] = "answered"
        await socket.send("ping")
        saw["pinged"] = await socket.recv()
        await socket.close(4002, "enough 够了")
    saw["closed"] = [socket.close_code, socket.close_reason]
    saw["backend"] = await until_equal("/closed/ws/a?q=%20x", repr((4002, "enough 够了")))
    async with connect(f"{SOCKET}/b", compression=None) as socket:
        saw["plain"] = [socket.subprotocol, repr(socket.protocol.extensions)]
        await socket.send("close 4001 go away")
        try:
            await socket.recv()
        except ConnectionClosed as error:
            saw["closed by it"] = [error.rcvd.code, error.rcvd.reason, error.rcvd_then_sent]
    try:
        await connect(f"{SOCKET}/forbidden")
    except InvalidStatus as error:
        saw["forbidden"] = [error.response.status_code, error.response.body.decode()]
    # Nobody says goodbye: the connection is just gone.
    socket = await connect(f"{SOCKET}/c")
    socket.transport.abort()
    saw["gone"] = await until_equal("/closed/ws/c", repr((1006, "")))
    return saw


async def contend():
    saw = {}
    first = await connect(f"{SOCKET}/s")
    await first.send("one")
    saw["first"] = await first.recv()
    try:
        await connect(f"{SOCKET}/s")
    except InvalidStatus as error:
        headers = error.response.headers
        saw["second"] = [error.response.status_code, headers["x-seriatim-error"], headers["retry-after"]]
        saw["busy"] = json.loads(error.response.body)
    async with connect(f"{SOCKET}/other") as other:
        await other.send("another session")
        saw["other"] = await other.recv()
    await first.send("two")
    saw["first"] += await first.recv()
    await first.close()
    # It is freed before its client can see the end.
    async with connect(f"{SOCKET}/s") as socket:
        await socket.send("after a close")
        saw["after"] = await socket.recv()
        await socket.send("close 1000 bye")
        await socket.wait_closed()
    async with connect(f"{SOCKET}/s") as socket:
        await socket.send("after the backend's close")
        saw["then"] = await socket.recv()
        socket.transport.abort()
    async with asyncio.timeout(20):
        while True:
            try:
                async with connect(f"{SOCKET}/s") as socket:
                    await socket.send("after it was gone")
                    saw["gone"] = await socket.recv()
                    return saw
            except InvalidStatus:
                await asyncio.sleep(0.01)


print(json.dumps(asyncio.run({"observe": observe, "contend": contend}[sys.argv[2]]())))

"""The `grpcio` package against URL, over h2c. Prints what it saw, as JSON.

Usage: grpc_client.py URL observe|contend. `observe` is the same with the proxy between and without;
`contend` is what a session's lock makes of two calls at once.
"""

import asyncio
import json
import sys

import grpc

TARGET = sys.argv[1].removeprefix("http://")


class Agent:
    def __init__(self, channel):
        method = "/tests.Agent/{}".format
        self.unary = channel.unary_unary(method("Unary"))
        self.stream = channel.unary_stream(method("Stream"))
        self.chat = channel.stream_stream(method("Chat"))
        self.collect = channel.stream_unary(method("Collect"))
        self.unknown = channel.unary_unary(method("Unknown"))
        self.go = channel.unary_unary(method("Go"))
        self._seen = channel.unary_unary(method("Seen"))

    async def seen(self, session):
        return json.loads(await self._seen(session.encode()))


def of(session, *more):
    return {"metadata": [("x-session-id", session), *more]}


def own(metadata):
    """The metadata that the backend has set itself."""
    return [[key, str(value)] for key, value in metadata or [] if key.startswith("x-")]


async def failure(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details(), own(error.trailing_metadata())]


async def until_left(agent, session):
    async with asyncio.timeout(20):
        while (await agent.seen(session))["turns"][-1]["end"] != "left":
            await asyncio.sleep(0.01)
    return await agent.seen(session)


async def observe(agent):
    saw = {}
    call = agent.unary(b"hi", **of("unary", ("x-text", "plain"), ("x-blob-bin", b"\x00\xff\x80")))
    saw["unary"] = [str(await call), own(await call.initial_metadata()), own(await call.trailing_metadata())]
    saw["unary"] += [(await call.code()).name, await call.details()]
    saw["failed"] = await failure(agent.unary(b"fail", **of("failed", ("x-blob-bin", b"\x01"))))
    saw["unknown"] = await failure(agent.unknown(b"", **of("unknown")))
    saw["large"] = len(await agent.unary(bytes(3_000_000), **of("large")))
    compressed = agent.unary(b"z" * 100_000, **of("gzip"), compression=grpc.Compression.Gzip)
    saw["compressed"] = len(await compressed)
    # Each message is let go by the one before: nothing in between may hold one back.
    call = agent.stream(b"3", **of("stream"), timeout=60)
    saw["stream"] = []
    async for piece in call:
        saw["stream"].append(piece.decode())
        await agent.go(b"stream")
    saw["stream"] += [own(await call.trailing_metadata()), await agent.seen("stream")]
    # Both directions at once.
    call = agent.chat(**of("chat"))
    saw["chat"] = []
    for text in ["a", "b", "c"]:
        await call.write(text.encode())
        saw["chat"].append((await call.read()).decode())
    await call.done_writing()
    saw["chat"] += [str(await call.read()), (await call.code()).name]
    saw["collect"] = (await agent.collect(iter([b"x", b"y"]), **of("collect"))).decode()
    # The backend sees a cancelled call, and one whose deadline has passed.
    call = agent.stream(b"2", **of("cancelled"))
    await call.read()
    call.cancel()
    saw["cancelled"] = await until_left(agent, "cancelled")
    call = agent.stream(b"2", **of("late"), timeout=2)
    await call.read()
    # Either side may be the first to notice, so the details differ.
    saw["late"] = [(await failure(call.read()))[0], await until_left(agent, "late")]
    return saw


async def contend(agent):
    saw = {}
    call = agent.stream(b"2", **of("s"))
    pieces = aiter(call)
    saw["first"] = [(await anext(pieces)).decode()]
    saw["busy"] = await failure(agent.unary(b"second", **of("s")))
    saw["other"] = (await agent.unary(b"another", **of("other"))).decode()
    for _ in range(2):
        await agent.go(b"s")
    async for piece in pieces:
        saw["first"].append(piece.decode())
    saw["after"] = (await agent.unary(b"after", **of("s"))).decode()
    saw["seen"] = await agent.seen("s")
    call = agent.stream(b"2", **of("left"))
    await call.read()
    call.cancel()
    await until_left(agent, "left")
    async with asyncio.timeout(20):
        while await failure(agent.unary(b"next", **of("left"))):
            await asyncio.sleep(0.01)
    saw["left"] = await agent.seen("left")
    return saw


async def main():
    async with grpc.aio.insecure_channel(TARGET) as channel:
        return await {"observe": observe, "contend": contend}[sys.argv[2]](Agent(channel))


print(json.dumps(asyncio.run(main())))

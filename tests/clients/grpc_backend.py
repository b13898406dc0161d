"""A gRPC agent over h2c. Its messages are plain bytes, so it needs no generated code."""

import asyncio
import json
from collections import defaultdict

import grpc

from serving import Turns

turns = Turns()
deadlines = defaultdict(list)


def session(context):
    return dict(context.invocation_metadata())["x-session-id"]


async def unary(request, context):
    """Answers with the request, and with the caller's metadata in headers and trailers."""
    with turns.turn(session(context)):
        sent = dict(context.invocation_metadata())
        await context.send_initial_metadata([("x-head", sent.get("x-text", "")), ("x-head", "again")])
        back = [("x-text", sent.get("x-text", "")), ("x-blob-bin", sent.get("x-blob-bin", b""))]
        context.set_trailing_metadata(back)
        if request == b"fail":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "so nicht: 不行 100%")
        return request


async def stream(request, context):
    """One message at a time, each after its gate."""
    deadlines[session(context)].append(context.time_remaining() is not None)
    with turns.turn(session(context)):
        for number in range(int(request)):
            yield b"%d" % number
            await turns.gate(session(context))
        context.set_trailing_metadata([("x-sum", str(number))])


async def chat(requests, context):
    """Answers each message while the caller goes on."""
    with turns.turn(session(context)):
        async for request in requests:
            yield b"re: " + request


async def collect(requests, context):
    with turns.turn(session(context)):
        return b",".join([request async for request in requests])


async def go(request, _context):
    turns.gates[request.decode()].release()
    return b""


async def seen(request, _context):
    name = request.decode()
    record = {"turns": turns.turns[name], "most": turns.most[name], "deadline": deadlines[name]}
    return json.dumps(record).encode()


async def main():
    unary_unary, unary_stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    methods = {
        "Unary": unary_unary(unary),
        "Stream": unary_stream(stream),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Go": unary_unary(go),
        "Seen": unary_unary(seen),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tests.Agent", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


asyncio.run(main())

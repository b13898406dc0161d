"""An agent that speaks the event streams of several clients. It thinks between two pieces of its answer.

POST /hold/{session} is a turn that ends with POST /go/{session}: behind it, the other turns of the session wait.
"""

import asyncio

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from serving import Turns, data, serve, sse

turns = Turns()
PIECES = ["Hel", "lo, ", "世界", " 👋"]
# Longer than the proxy's `keep_alive` in the tests, so that comments come between the pieces, too.
THINKS = 0.25


async def answer(session, begin, piece, end):
    """The events of a turn."""
    with turns.turn(session, kind="turn"):
        for event in begin:
            yield event
        for text in PIECES:
            await asyncio.sleep(THINKS)
            yield piece(text)
        for event in end:
            yield event


async def page(_request):
    return HTMLResponse("<!doctype html><title>An agent</title><div id=root></div>")


async def hold(request):
    session = request.path_params["session"]

    async def held():
        with turns.turn(session, kind="hold"):
            yield data("held")
            await turns.gate(session)

    return sse(held())


async def openai(request):
    body = await request.json()
    whole = {"id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta, finish=None):
        return data({**whole, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    session = request.headers["x-session-id"]
    end = [chunk({}, "stop"), "data: [DONE]\n\n"]
    return sse(answer(session, [], lambda text: chunk({"content": text}), end))


async def responses(request):
    session = (await request.json())["conversation"]

    def piece(text):
        delta = {"type": "response.output_text.delta", "delta": text, "item_id": "m"}
        place = {"output_index": 0, "content_index": 0, "sequence_number": 0, "logprobs": []}
        return data({**delta, **place}, delta["type"])

    return sse(answer(session, [], piece, []))


async def langgraph(request):
    await request.json()
    begin = [data({"run_id": "r", "attempt": 1}, "metadata")]

    def piece(text):
        message = {"type": "AIMessageChunk", "id": "m", "content": text}
        return data([message, {}], "messages")

    return sse(answer(request.path_params["thread"], begin, piece, []))


async def ag_ui(request):
    body = await request.json()
    ids = {"threadId": body["threadId"], "runId": body["runId"]}
    begin = [
        data({"type": "RUN_STARTED", **ids}),
        data({"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"}),
    ]
    end = [data({"type": "TEXT_MESSAGE_END", "messageId": "m"}), data({"type": "RUN_FINISHED", **ids})]

    def piece(text):
        return data({"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": text})

    return sse(answer(body["threadId"], begin, piece, end))


async def vercel_ai(request):
    body = await request.json()
    begin = [data({"type": "start", "messageId": "m"}), data({"type": "text-start", "id": "t"})]
    end = [data({"type": "text-end", "id": "t"}), data({"type": "finish"}), "data: [DONE]\n\n"]

    def piece(text):
        return data({"type": "text-delta", "id": "t", "delta": text})

    headers = {"x-vercel-ai-ui-message-stream": "v1"}
    return sse(answer(body["id"], begin, piece, end), headers=headers)


async def events(request):
    """For an `EventSource`, which closes at `end`."""
    session = request.query_params["session"]
    return sse(answer(session, [], data, [data("end", "end")]))


async def chat(request):
    body = await request.json()
    return sse(answer(body["session_id"], [], data, []))


serve(
    Starlette(
        routes=[
            Route("/", page),
            Route("/hold/{session}", hold, methods=["POST"]),
            Route("/v1/chat/completions", openai, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            Route("/threads/{thread}/runs/stream", langgraph, methods=["POST"]),
            Route("/agent", ag_ui, methods=["POST"]),
            Route("/api/chat", vercel_ai, methods=["POST"]),
            Route("/events", events),
            Route("/chat", chat, methods=["POST"]),
            *turns.routes(),
        ]
    )
)

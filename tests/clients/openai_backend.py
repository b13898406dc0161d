"""An agent that speaks chat completions and responses, as small as the `openai` packages let it be.

Its turns have no lock: `/seen/{session}` says how many of one session ran at once. An input of
`limited` is answered with its own 429 at first, `refused` with a 400.
"""

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from serving import Turns, data, serve, sse

turns = Turns()
PIECES = ["Hel", "lo, ", "世界", " 👋"]


def error(status, message, **headers):
    body = {"error": {"message": message, "type": "test", "param": None, "code": "c"}}
    return JSONResponse(body, status, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def streamed(session, what, begin, piece, end):
    with turns.turn(session, **what):
        for event in begin:
            yield event
        for text in PIECES:
            yield piece(text)
            await turns.gate(session)
        for event in end:
            yield event


def refusal(session, text, what):
    """What is answered instead of a turn, if anything."""
    if text == "limited" and what["retry"] in (None, "0"):
        with turns.turn(session, **what):
            # Longer than the rest of this response takes: the package for Node leaves at its head.
            return error(429, "slow down", retry_after_ms="250")
    if text == "refused":
        return error(400, "no such thing", x_request_id="req_400")


async def chat(request):
    body = await request.json()
    session = request.headers["x-session-id"]
    what = {"retry": request.headers.get("x-stainless-retry-count")}
    if answer := refusal(session, body["messages"][-1]["content"], what):
        return answer
    whole = {"id": "chat_1", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        with turns.turn(session, **what):
            message = {"role": "assistant", "content": "".join(PIECES)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            answer = {**whole, "object": "chat.completion", "choices": choices}
            return JSONResponse(answer, headers={"x-request-id": "req_1"})

    def chunk(delta, finish=None):
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return data({**whole, "object": "chat.completion.chunk", "choices": choices})

    end = [chunk({}, "stop"), "data: [DONE]\n\n"]
    events = streamed(session, what, [], lambda text: chunk({"content": text}), end)
    return sse(events, headers={"x-request-id": "req_1"})


async def responses(request):
    body = await request.json()
    session = body["conversation"]
    what = {"retry": request.headers.get("x-stainless-retry-count")}
    if answer := refusal(session, body["input"], what):
        return answer
    numbers = iter(range(100))

    def event(kind, **members):
        return data({"type": kind, "sequence_number": next(numbers), **members}, kind)

    def response(status, output):
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": status,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }

    def message(status, text):
        content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
        return {"type": "message", "id": "m", "role": "assistant", "status": status, "content": content}

    part = {"item_id": "m", "output_index": 0, "content_index": 0}
    text = "".join(PIECES)
    empty = {"type": "output_text", "text": "", "annotations": []}
    begin = [
        event("response.created", response=response("in_progress", [])),
        event("response.output_item.added", output_index=0, item=message("in_progress", "")),
        event("response.content_part.added", **part, part=empty),
    ]
    done = message("completed", text)

    def end():
        yield event("response.output_text.done", **part, text=text, logprobs=[])
        yield event("response.content_part.done", **part, part={**empty, "text": text})
        yield event("response.output_item.done", output_index=0, item=done)
        yield event("response.completed", response=response("completed", [done]))

    def piece(text):
        return event("response.output_text.delta", **part, delta=text, logprobs=[])

    return sse(streamed(session, what, begin, piece, end()))


serve(
    Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/responses", responses, methods=["POST"]),
            *turns.routes(),
        ]
    )
)

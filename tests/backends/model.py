"""A model server with OpenAI's Chat Completions, streaming and not, for backends that need one. It writes the record."""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent / "python"))

import turn  # noqa: E402


def words_of(messages: list[dict]) -> str:
    """The text of the last message of the user."""
    content = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def completion(model: str, kind: str, **choice: object) -> dict:
    return {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "finish_reason": None, **choice}],
    }


USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


async def complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    text, model = words_of(body["messages"]), body.get("model", "fake")
    if not body.get("stream"):
        message = {"role": "assistant", "content": await turn.answer(text)}
        return web.json_response({**completion(model, "chat.completion", message=message, finish_reason="stop"), "usage": USAGE})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)

    async def send(**more: object) -> None:
        chunk = {**completion(model, "chat.completion.chunk", **more)}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

    await send(delta={"role": "assistant", "content": ""})
    async for piece in turn.stream(text):
        await send(delta={"content": piece})
    await send(delta={}, finish_reason="stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {**completion(model, "chat.completion.chunk"), "choices": [], "usage": USAGE}
        await response.write(f"data: {json.dumps(usage)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def models(_request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model", "created": 0, "owned_by": "tests"}]})


async def embed(request: web.Request) -> web.Response:
    body = await request.json()
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = [{"object": "embedding", "index": n, "embedding": [0.0] * 8} for n, _ in enumerate(texts)]
    return web.json_response({"object": "list", "data": data, "model": body.get("model", "fake"), "usage": USAGE})


def application() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_post("/v1/embeddings", embed)
    app.router.add_get("/v1/models", models)
    return app


if __name__ == "__main__":
    # A caller that leaves cancels its handler, as with a real model.
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), handler_cancellation=True, print=None)

"""An agent that calls itself through proxies: docs/nested-calls.md says how it passes on the header.

The body has `hops`, a list of URLs and sessions. The agent calls the first one with the rest, and answers
with what it got.
"""

from contextvars import ContextVar

import httpx
from fastapi import FastAPI, Request

TURN = "x-seriatim-turn"
turn: ContextVar[str | None] = ContextVar("turn", default=None)
app = FastAPI()


@app.middleware("http")
async def keep_turn(request: Request, call_next):
    turn.set(request.headers.get(TURN))
    return await call_next(request)


async def pass_on(request: httpx.Request):
    if value := turn.get():
        request.headers[TURN] = value


client = httpx.AsyncClient(event_hooks={"request": [pass_on]}, timeout=15)


@app.post("/chat")
async def chat(body: dict):
    if not body["hops"]:
        return {"called": None}
    (url, session), *hops = body["hops"]
    inner = {"session_id": session, "user_id": body["user_id"], "hops": hops}
    try:
        answer = await client.post(f"{url}/chat", json=inner)
    except httpx.TimeoutException:
        return {"called": "no answer"}
    reason = answer.headers.get("x-seriatim-error")
    return {"called": [answer.status_code, reason, answer.json().get("called")]}

"""A replica from before: it takes its sessions' locks itself, and does a turn's work at BACKEND_URL.

`/chat` has the lock in its route, `/wait` likewise and blocking, `/stream` around its agent's method, extended.
"""

import os
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from distributed_lock import (
    SessionLockContext,
    SessionLockedError,
    get_distributed_lock,
    is_session_locked,
    with_session_lock,
)

backend = httpx.AsyncClient(base_url=os.environ["BACKEND_URL"], timeout=None)


@asynccontextmanager
async def lifespan(_):
    yield
    await backend.aclose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(SessionLockedError)
async def locked(_: Request, error: SessionLockedError):
    content = {
        "success": False,
        "error": "AI 正在思考中，请稍后再试",
        "detail": error.detail,
        "status_code": 429,
    }
    return JSONResponse(content, status_code=429)


async def turn(request: Request, **parameters):
    body = await request.json()
    async with SessionLockContext(body["session_id"], body["user_id"], **parameters):
        headers = {"x-test-script": request.headers["x-test-script"], "x-n": request.headers.get("x-n", "0")}
        answer = await backend.post("/chat", json=body, headers=headers)
        return Response(answer.content, answer.status_code)


@app.post("/chat")
async def chat(request: Request):
    return await turn(request, lock_timeout=300)


@app.post("/wait")
async def wait(request: Request):
    return await turn(request, lock_timeout=300, blocking=True, blocking_timeout=60)


class Agent:
    @with_session_lock(lock_timeout=3, extend_lock_interval=1)
    async def process_request(self, request_data, context=None):
        headers = {"x-test-script": context["script"]}
        async with backend.stream("POST", "/chat", json=request_data, headers=headers) as answer:
            async for piece in answer.aiter_raw():
                yield piece


@app.post("/stream")
async def stream(request: Request):
    body = await request.json()
    context = {**body, "script": request.headers["x-test-script"]}
    return StreamingResponse(Agent().process_request(body, context))


@app.get("/locked/{user_id}/{session_id}")
async def is_locked(user_id: str, session_id: str):
    return {"locked": await is_session_locked(session_id, user_id)}


@app.post("/force_release/{user_id}/{session_id}")
async def force_release(user_id: str, session_id: str):
    lock = await get_distributed_lock()
    return {"released": await lock.force_release(f"{user_id}:{session_id}")}

"""The same agent before: it takes the session's lock itself."""

import uuid

import redis.asyncio
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from agent import Turn, answer

app = FastAPI()
locks = redis.asyncio.Redis.from_url("redis://127.0.0.1:6379/0")
RELEASE = """if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end"""


@app.post("/chat")
async def chat(turn: Turn) -> Response:
    lock, token = f"lock:session:{turn.user_id}:{turn.session_id}", str(uuid.uuid4())
    if not await locks.set(lock, token, nx=True, ex=300):
        busy = {"success": False, "error": "AI 正在思考中，请稍后再试", "detail": f"[{lock}] 锁已被占用", "status_code": 429}
        return JSONResponse(busy, 429)

    async def locked():
        try:
            async for event in answer(turn):
                yield event
        finally:
            await locks.eval(RELEASE, 1, lock, token)

    return StreamingResponse(locked(), media_type="text/event-stream")

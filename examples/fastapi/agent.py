"""A streaming agent. It has no lock: Seriatim runs the turns of a session one at a time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()
stopped: set[str] = set()


class Turn(BaseModel):
    input: str
    session_id: str
    user_id: str = "unknown"


class Stop(BaseModel):
    session_id: str


def log(line: str) -> None:
    print(datetime.now().isoformat(), line, flush=True)


async def answer(turn: Turn) -> AsyncIterator[str]:
    """A fake model: it says what it was told, word by word. Its log is the proof that no two turns of a session overlap."""
    log(f"{turn.session_id} begins: {turn.input}")
    stopped.discard(turn.session_id)
    for word in f"You said: {turn.input}".split():
        yield f"data: {word}\n\n"
        await asyncio.sleep(0.5)
        if turn.session_id in stopped:
            break
    log(f"{turn.session_id} ends: {turn.input}")


@app.post("/chat")
async def chat(turn: Turn) -> StreamingResponse:
    return StreamingResponse(answer(turn), media_type="text/event-stream")


@app.post("/chat/stop")
async def stop(stop: Stop) -> dict[str, bool]:
    stopped.add(stop.session_id)
    return {"success": True}

"""A streaming agent backend as a person would write it, with no lock of its own.

It counts how many turns of one session it has at once, which is what goes wrong without a proxy.
"""

import asyncio
import json
from collections import defaultdict

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()
running = defaultdict(int)
most = defaultdict(int)
turns = 0


class Turn(BaseModel):
    session_id: str
    user_id: str = "unknown"
    input: str = ""


@app.post("/chat")
async def chat(turn: Turn):
    async def events():
        global turns
        turns += 1
        running[turn.session_id] += 1
        most[turn.session_id] = max(most[turn.session_id], running[turn.session_id])
        try:
            for number in range(5):
                yield f"data: {json.dumps({'n': number})}\n\n"
                await asyncio.sleep(0.02)
            yield "data: [DONE]\n\n"
        finally:
            running[turn.session_id] -= 1

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/counts")
async def counts():
    return {"turns": turns, "most": most, "running": sum(running.values())}

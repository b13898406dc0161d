"""How clients of AG-UI run an agent: @ag-ui/client posts the whole input, and stops a run by closing the response."""

from __future__ import annotations

import uuid

from client import Call, Exchange
from protocol import Backend


class AgUi(Backend):
    """An agent at `/agent`. A session is a thread's id, which the client chooses."""

    ways = {"/agent": True}
    differs = (r'"timestamp":\d+',)

    def command(self, port: int) -> list[str]:
        return self.python("uvicorn", "server:app", "--host", "127.0.0.1", "--port", str(port))

    def call(self, session: str, text: str, way: str) -> Call:
        return run({"threadId": session, "runId": str(uuid.uuid4())}, text)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {"snake case": run({"thread_id": session, "run_id": str(uuid.uuid4())}, text)}

    def worked(self, exchange: Exchange, turn: str) -> bool:
        return super().worked(exchange, turn) and '"RUN_FINISHED"' in exchange.text

    def refused(self, exchange: Exchange) -> bool:
        """A client shows any status of 400 or above as an error, with the body."""
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def run(ids: dict, text: str) -> Call:
    message = {"id": str(uuid.uuid4()), "role": "user", "content": text}
    rest = {"state": {}, "tools": [], "context": [], "forwardedProps": {}}
    return Call("/agent", json={**ids, "messages": [message], **rest}, headers={"accept": "text/event-stream"})

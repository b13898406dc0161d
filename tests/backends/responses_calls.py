"""How clients call the Responses API, and what its servers have in common. A session is a conversation's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client import Call, Exchange
from protocol import Backend

# Behind the path of a way whose response isn't streamed.
WHOLE = ", whole"


class Responses(Backend):
    preset = "openai-responses"
    ways = {"/responses": True, f"/responses{WHOLE}": False}
    leaves = "continues"
    headers: Mapping[str, str] = {}
    # Of a response and of its items.
    differs = (r'"[a-z]+_[0-9a-zA-Z=_-]{32,}"', r'"agent_session_id":\s*"[^"]*"')

    def post(self, way: str, text: str, conversation: Any) -> Call:
        body = {"model": "fake", "input": text, "conversation": conversation, "stream": not way.endswith(WHOLE)}
        return Call(way.removesuffix(WHOLE), json=body, headers=self.headers)

    def call(self, session: str, text: str, way: str) -> Call:
        return self.post(way, text, session)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        ways = {way: self.call(session, text, way) for way in self.ways}
        return {**ways, "as an object": self.post(next(iter(ways)), text, {"id": session})}

    def refused(self, exchange: Exchange) -> bool:
        error = (exchange.json() or {}).get("error")
        return exchange.status == 429 and isinstance(error, dict) and error["code"] == "session_busy" and "retry-after" in exchange.headers


class AgentServer(Responses):
    """Microsoft's server for agents."""

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    def env(self) -> dict[str, str]:
        # It stores responses there.
        return {"HOME": str(self.packages / "home")}

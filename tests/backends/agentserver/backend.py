"""Microsoft's server for agents with the Responses API, whose requests name a conversation."""

from __future__ import annotations

from typing import Any

from client import Call, Exchange
from protocol import Backend


class AgentServer(Backend):
    preset = "openai-responses"
    ways = {"streamed": True, "whole": False}
    # The quickstart's agent doesn't look at its signal.
    leaves = "continues"
    # Of a response, of its items, and of the session that the server makes up.
    differs = (r'"[a-z]+_[0-9a-zA-Z]{32,}"', r'"agent_session_id":\s*"[^"]*"')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    def env(self) -> dict[str, str]:
        # It stores responses there.
        return {"HOME": str(self.packages / "home")}

    def call(self, session: str, text: str, way: str) -> Call:
        return call(session, text, way == "streamed")

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {"as an object": call({"id": session}, text, True), "not streamed": call(session, text, False)}

    def refused(self, exchange: Exchange) -> bool:
        error = (exchange.json() or {}).get("error")
        return exchange.status == 429 and isinstance(error, dict) and error["code"] == "session_busy" and "retry-after" in exchange.headers


def call(conversation: Any, text: str, stream: bool) -> Call:
    return Call("/responses", json={"model": "agent", "input": text, "conversation": conversation, "stream": stream})


backend = AgentServer()

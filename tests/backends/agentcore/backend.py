"""Bedrock AgentCore's runtime, with agents of Strands."""

from __future__ import annotations

from client import Call, Exchange
from protocol import Backend

SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"


class AgentCore(Backend):
    preset = "agentcore"
    ways = {"stream": True, "one response": False}
    leaves = "continues"

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    def call(self, session: str, text: str, way: str) -> Call:
        return Call("/invocations", json={"prompt": text, "stream": self.ways[way]}, headers={SESSION: session})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {"in lower case": Call("/invocations", json={"prompt": text}, headers={SESSION.lower(): session})}

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


backend = AgentCore()

"""AgentScope's runtime: an AgentApp as its quickstart deploys it."""

from __future__ import annotations

from client import Call, Exchange
from protocol import Backend


class AgentScope(Backend):
    preset = "agentscope"
    ways = {"/process": True}
    leaves = "cancels"
    interrupts = True
    differs = (r'"id":"[^"]*"', r'"msg_id":"[^"]*"')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    def call(self, session: str, text: str, way: str) -> Call:
        return process(text, session_id=session, user_id="u1")

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {"one more field": Call("/process", json={**process(text, session_id=session, user_id="u1").json, "stream": True})}

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def process(text: str, **ids: str) -> Call:
    message = {"role": "user", "content": [{"type": "text", "text": text}]}
    return Call("/process", json={"input": [message], **ids})


backend = AgentScope()

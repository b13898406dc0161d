"""CopilotKit's runtime, which keeps threads in memory. Its own pages call it as here."""

from __future__ import annotations

import uuid

from client import Call, Exchange
from protocol import Backend


class CopilotKit(Backend):
    preset = "copilotkit"
    ways = {"many routes": True, "single route": True}
    leaves = "continues"
    interrupts = False
    needs_model = True
    differs = (r'"(messageId|parentMessageId|id)":"[^"]*"', r'"timestamp":\d+')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.node("server.mjs")]

    def env(self) -> dict[str, str]:
        return {"MODEL": self.model_url, "COPILOTKIT_TELEMETRY_DISABLED": "true"}

    def call(self, session: str, text: str, way: str) -> Call:
        return single("agent/run", run(session, text)) if way == "single route" else Call("/api/copilotkit/agent/default/run", json=run(session, text))

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {
            # Threads are the same for all agents.
            "another agent": Call("/api/copilotkit/agent/other/run", json=run(session, text)),
            "deeper": Call("/api/copilotkit/v1/agent/default/run", json=run(session, text)),
            "slash at the end": Call("/api/copilotkit/agent/default/run/", json=run(session, text)),
            "single route": single("agent/run", run(session, text)),
            "single route, deeper": Call("/copilot/v1", json=single("agent/run", run(session, text)).json),
        }

    def refused(self, exchange: Exchange) -> bool:
        """Pages show any response that isn't ok as an error. The runtime's own is an empty stream with status 200."""
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"

    def worked(self, exchange: Exchange, turn: str) -> bool:
        return super().worked(exchange, turn) and "RUN_FINISHED" in exchange.text


def run(session: str, text: str) -> dict:
    message = {"id": str(uuid.uuid4()), "role": "user", "content": text}
    return {"threadId": session, "runId": str(uuid.uuid4()), "messages": [message], "state": {}, "tools": [], "context": [], "forwardedProps": {}}


def single(method: str, body: dict) -> Call:
    return Call("/copilot", json={"method": method, "params": {"agentId": "default"}, "body": body})


backend = CopilotKit()

"""Mastra's server: agents with memory. A session is a thread, called as Mastra's client does."""

from __future__ import annotations

import uuid

from client import Call, Client, Exchange
from protocol import Backend


class Mastra(Backend):
    preset = "mastra"
    ways = {"stream": True, "generate": False, "stream-until-idle": True}
    leaves = "cancels"
    interrupts = True
    needs_model = True
    # Of a message and a run; of the model's response.
    differs = (r'"(id|messageId|runId)":"[^"]*"', r'"date":"[^"]*"')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.node("server.mjs")]

    def env(self) -> dict[str, str]:
        return {"MODEL": self.model_url, "MASTRA_TELEMETRY_DISABLED": "1"}

    async def session(self, client: Client, name: str) -> str:
        # LibSQL keeps threads.
        return f"{name}-{uuid.uuid4()}"

    def call(self, session: str, text: str, way: str) -> Call:
        memory = {"thread": session, "resource": "u1"}
        return Call(f"/api/agents/chat/{way}", json={"messages": [{"role": "user", "content": text}], "memory": memory})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        messages = {"messages": text}
        memory = {"thread": session, "resource": "u1"}
        return {
            "thread as object": Call("/api/agents/chat/stream", json={**messages, "memory": {**memory, "thread": {"id": session, "title": "x"}}}),
            # A thread is the same for all agents.
            "another agent": Call("/api/agents/other/stream", json={**messages, "memory": memory}),
            "generate": Call("/api/agents/chat/generate", json={**messages, "memory": memory}),
            "generate, older": Call("/api/agents/chat/generate/vnext", json={**messages, "memory": memory}),
            "until idle": Call("/api/agents/chat/stream-until-idle", json={**messages, "memory": memory}),
            "responses": Call("/api/v1/responses", json={"agent_id": "chat", "input": text, "conversation_id": session, "stream": True, "store": True}),
        }

    def refused(self, exchange: Exchange) -> bool:
        """Mastra's client throws an error with the status and the body."""
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


backend = Mastra()

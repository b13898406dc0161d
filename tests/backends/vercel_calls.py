"""How useChat calls the server routes of the AI SDK's guides."""

from __future__ import annotations

import json

from client import Call, Exchange
from protocol import Backend


class VercelAi(Backend):
    """The guides without an abort signal: "Chatbot Message Persistence", "Handling client disconnects", "Chatbot Resume Streams"."""

    preset = "vercel-ai"
    ways = {"persistence": True, "disconnects": True, "resumable": True}
    leaves = "continues"
    interrupts = False
    needs_model = True
    # Of a message.
    differs = (r'"messageId":"[^"]*"', r'"id":"[^"]*"')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.node("server.mjs")]

    def env(self) -> dict[str, str]:
        return {"MODEL": self.model_url}

    def body(self, session: str, text: str) -> dict:
        message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
        return {"id": session, "messages": [message], "trigger": "submit-message"}

    def call(self, session: str, text: str, way: str) -> Call:
        return Call(f"/api/chat?guide={way}", json=self.body(session, text))

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        path, body = f"/api/chat?guide={next(iter(self.ways))}", self.body(session, text)
        plain = json.dumps(body)
        return {
            "regenerated": Call(path, json={**body, "trigger": "regenerate-message", "messageId": "m0"}),
            "escaped name": Call(path, data=plain.replace('"id"', r'"\u0069d"').encode(), headers={"content-type": "application/json"}),
            # Routes read JSON whatever its type.
            "as text": Call(path, data=plain.encode(), headers={"content-type": "text/plain"}),
        }

    def refused(self, exchange: Exchange) -> bool:
        """useChat shows the body of a response that isn't ok as its error."""
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"

"""LlamaIndex's workflow server, with its memory as the store."""

from __future__ import annotations

import uuid

from client import Call, Client, Exchange
from protocol import Backend


class LlamaIndex(Backend):
    preset = "llamaindex"
    ways = {"/workflows/chat/run": False}
    leaves = "continues"
    differs = (r'"run_id": ?"[^"]*"',)

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    async def session(self, client: Client, name: str) -> str:
        """A handler with a first run."""
        handler = str(uuid.uuid4())
        await client.call(self.run(handler, "hello", owner=handler))
        return handler

    def run(self, handler: str, text: str, workflow: str = "chat", **more: str) -> Call:
        return Call(f"/workflows/{workflow}/run", json={"handler_id": handler, "start_event": {"message": text, **more}})

    def call(self, session: str, text: str, way: str) -> Call:
        return self.run(session, text)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {
            "older name of the event": Call("/workflows/chat/run", json={"handler_id": session, "kwargs": {"message": text}}),
            "another workflow": self.run(session, text, "other"),
        }

    def refused(self, exchange: Exchange) -> bool:
        """As the server itself refuses a handler that is running."""
        return exchange.status == 409 and exchange.headers.get("x-seriatim-error") == "session_busy"


backend = LlamaIndex()

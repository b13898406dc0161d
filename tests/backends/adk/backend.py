"""Google ADK: `adk api_server` on a folder of agents, with sessions in memory, as its quickstart starts it."""

from __future__ import annotations

from client import Call, Client, Exchange
from protocol import Backend


class Adk(Backend):
    preset = "adk"
    ways = {"/run_sse": True, "/run": False}
    leaves = "cancels"
    interrupts = True
    # Of an event and of an invocation.
    differs = (r'"id":"[^"]*"', r'"invocationId":"[^"]*"', r'"timestamp":[\d.]+')

    def command(self, port: int) -> list[str]:
        return self.python("adk", "api_server", "--host", "127.0.0.1", "--port", str(port), "--session_service_uri", "memory://", "agents")

    def env(self) -> dict[str, str]:
        return {"ADK_DEFAULT_APP_NAME": "chat"}

    async def session(self, client: Client, name: str) -> str:
        await client.call(Call(f"/apps/chat/users/u1/sessions/{name}", json={}))
        return name

    def call(self, session: str, text: str, way: str) -> Call:
        return Call(way, json={"appName": "chat", "userId": "u1", "sessionId": session, **message(text)})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        camel = {"userId": "u1", "sessionId": session}
        return {
            "without the default app": Call("/run_sse", json={**camel, **message(text)}),
            "app null": Call("/run_sse", json={"appName": None, **camel, **message(text)}),
            "snake case": Call("/run_sse", json={"app_name": "chat", "user_id": "u1", "session_id": session, **message(text)}),
            "the other path": Call("/run", json={"appName": "chat", **camel, **message(text)}),
            "the other path without the default app": Call("/run", json={**camel, **message(text)}),
        }

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def message(text: str) -> dict:
    return {"newMessage": {"role": "user", "parts": [{"text": text}]}, "streaming": True}


backend = Adk()

"""Letta's server, with an agent that has no tools. 0.16 is the last version with a server."""

from __future__ import annotations

from client import Call, Client, Exchange
from process import free_port
from protocol import Backend


class Letta(Backend):
    preset = "letta"
    ways = {
        "/v1/agents/{}/messages/stream": True,
        "/v1/agents/{}/messages": False,
        "/v1/conversations/default/messages": True,
        "/v1/chat/completions": True,
    }
    leaves = "continues"
    needs_model = True
    differs = (r'"(?:id|otid|run_id|step_id)":\s*"[^"]*"', r'"(?:total_)?(?:duration|latency)\w*":\s*\d+')

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", f"PG_PORT={free_port()}", *self.python("python", "server.py")]

    def env(self) -> dict[str, str]:
        home = str(self.packages / "home")
        return {"HOME": home, "LETTA_DIR": f"{home}/.letta", "OPENAI_API_KEY": "none", "OPENAI_API_BASE": self.model_url}

    async def ready(self, client: Client) -> None:
        await client.call(Call("/v1/health/", method="GET"))

    async def session(self, client: Client, name: str) -> str:
        model = {"model": "fake", "model_endpoint_type": "openai", "model_endpoint": self.model_url, "context_window": 32000}
        agent = {"name": name, "agent_type": "letta_v1_agent", "llm_config": model, "include_base_tools": False}
        return (await client.call(Call("/v1/agents/", json=agent))).json()["id"]

    def call(self, session: str, text: str, way: str) -> Call:
        messages = [{"role": "user", "content": text}]
        if way == "/v1/chat/completions":
            return Call(way, json={"model": session, "messages": messages, "stream": True})
        streaming = way != "/v1/agents/{}/messages"
        return Call(way.format(session), json={"messages": messages, "streaming": streaming, "stream_tokens": streaming, "agent_id": session})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        ways = {way: self.call(session, text, way) for way in self.ways}
        plain = self.call(session, text, "/v1/agents/{}/messages").json
        return {
            **ways,
            "the other mount": Call(f"/latest/agents/{session}/messages", json=plain),
            "the agent as a conversation": Call(f"/v1/conversations/{session}/messages", json=plain),
        }

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status in (409, 429) and exchange.headers.get("x-seriatim-error") == "session_busy"


backend = Letta()

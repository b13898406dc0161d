"""LiteLLM's proxy before a model, as its quickstart starts it: Chat Completions at all its paths."""

from __future__ import annotations

from client import Call, Client, Exchange
from protocol import Backend

KEY = "sk-0123456789abcdef0123456789abcdef"


class LiteLlm(Backend):
    preset = "openai-chat"
    ways = {
        "/v1/chat/completions": True,
        "/chat/completions": True,
        "/engines/fake/chat/completions": True,
        "/openai/deployments/fake/chat/completions": True,
        # Not streamed.
        "/v1/chat/completions, whole": False,
    }
    leaves = {way: "continues" if way.endswith("whole") else "cancels" for way in ways}
    needs_model = True

    def command(self, port: int) -> list[str]:
        return self.python("litellm", "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port))

    def env(self) -> dict[str, str]:
        return {"MODEL_URL": self.model_url, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    async def ready(self, client: Client) -> None:
        await client.call(Call("/health/liveliness", method="GET"))

    def call(self, session: str, text: str, way: str) -> Call:
        path, _, whole = way.partition(", ")
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], "stream": not whole}
        return Call(path, json=body, headers={"x-session-id": session, "authorization": f"Bearer {KEY}"})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        plain = self.call(session, text, "/v1/chat/completions")
        return {
            "another path": Call("/openai/deployments/fake/chat/completions", json=plain.json, headers=plain.headers),
            "LiteLLM's header": Call(plain.path, json=plain.json, headers={"x-litellm-session-id": session, "authorization": f"Bearer {KEY}"}),
        }

    def refused(self, exchange: Exchange) -> bool:
        error = (exchange.json() or {}).get("error")
        return exchange.status == 429 and isinstance(error, dict) and error["code"] == "session_busy" and "retry-after" in exchange.headers


backend = LiteLlm()

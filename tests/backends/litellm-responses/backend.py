"""LiteLLM's proxy before a model: the Responses API at all its paths."""

from __future__ import annotations

from client import Call, Client
from responses_calls import WHOLE, Responses

KEY = "sk-0123456789abcdef0123456789abcdef"


class LiteLlmResponses(Responses):
    ways = {"/v1/responses": True, "/responses": True, "/openai/v1/responses": True, f"/v1/responses{WHOLE}": False}
    needs_model = True
    headers = {"authorization": f"Bearer {KEY}"}

    def command(self, port: int) -> list[str]:
        return self.python("litellm", "--config", "../litellm/config.yaml", "--host", "127.0.0.1", "--port", str(port))

    def env(self) -> dict[str, str]:
        return {"MODEL_URL": self.model_url, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    async def ready(self, client: Client) -> None:
        await client.call(Call("/health/liveliness", method="GET"))


backend = LiteLlmResponses()

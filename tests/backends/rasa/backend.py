"""Rasa with its REST channel and an action server, as its quickstart starts them. It needs Python 3.10."""

from __future__ import annotations

from client import Call, Exchange
from process import free_port
from protocol import Backend

# Rasa trains a model before it listens.
START = 'rasa train --quiet --out "$MODELS" && (python actions.py & exec rasa run --model "$MODELS" --interface 127.0.0.1 --port "$0")'


class Rasa(Backend):
    preset = "rasa"
    ways = {"/webhooks/rest/webhook": False, "/webhooks/rest/webhook?stream=true": False}
    leaves = "continues"

    def command(self, port: int) -> list[str]:
        return ["sh", "-c", START, str(port)]

    def env(self) -> dict[str, str]:
        actions = free_port()
        return {
            "PATH": f"{self.packages / 'bin'}:/usr/bin:/bin",
            "MODELS": str(self.packages / "models"),
            "ACTIONS_PORT": str(actions),
            "ACTIONS_URL": f"http://127.0.0.1:{actions}/webhook",
            "RASA_TELEMETRY_ENABLED": "false",
        }

    def call(self, session: str, text: str, way: str) -> Call:
        return Call(way, json={"sender": session, "message": text})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {"streamed": self.call(session, text, "/webhooks/rest/webhook?stream=true")}

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


backend = Rasa()

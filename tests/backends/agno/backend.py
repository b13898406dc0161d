"""Agno: AgentOS as its quickstart serves it."""

from __future__ import annotations

import aiohttp

from client import Call, Exchange
from protocol import Backend


class Agno(Backend):
    preset = "agno"
    ways = {"agents": True, "teams": True, "workflows": True, "stream=false": False, "background=true": True}
    leaves = {way: "continues" if "=" in way else "cancels" for way in ways}
    # Two of the ways do not allow it.
    interrupts = False
    # Of events: how long something took.
    differs = (r"\d+\.\d+(e-\d+)?",)

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    def call(self, session: str, text: str, way: str) -> Call:
        name, _, value = way.partition("=")
        return run("agents", text, session_id=session, **{name: value}) if value else run(way, text, session_id=session)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        parts = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        parts.add_field("message", text)
        parts.add_field("session_id", session)
        return {
            "with a user": run("agents", text, session_id=session, user_id="u1"),
            "multipart": Call("/agents/agent/runs", data=parts),
            "another agent": Call("/agents/other/runs", form={"message": text, "session_id": session}),
        }

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def run(kind: str, text: str, **fields: str) -> Call:
    return Call(f"/{kind}/{kind[:-1]}/runs", form={"message": text, **fields})


backend = Agno()

"""LangServe: a chain with the history of a session."""

from __future__ import annotations

from client import Call, Exchange
from protocol import Backend


class LangServe(Backend):
    preset = "langserve"
    ways = {"stream": True, "stream_log": True, "stream_events": True, "invoke": False}
    leaves = {way: "continues" if way == "invoke" else "cancels" for way in ways}
    # One of the ways does not allow it.
    interrupts = False

    def command(self, port: int) -> list[str]:
        return self.python("uvicorn", "server:app", "--host", "127.0.0.1", "--port", str(port))

    def call(self, session: str, text: str, way: str) -> Call:
        return run(f"/chat/{way}", text, {"session_id": session})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {
            "another chain": run("/deep/other/invoke", text, {"session_id": session}),
            "with a second key": run("/chat/invoke", text, {"session_id": session, "thread_id": "other"}),
        }

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def run(path: str, text: str, configurable: dict[str, str]) -> Call:
    return Call(path, json={"input": {"messages": text}, "config": {"configurable": configurable}})


backend = LangServe()

"""LangGraph's server: `langgraph dev`, with threads in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from client import Call, Client, Exchange
from protocol import Backend


class LangGraph(Backend):
    preset = "langgraph"
    ways = {"stream": True, "wait": False}
    leaves = "continues"
    differs = (r'"attempt":\d+', r"\bid: \d+-\d+")

    def place(self) -> Path:
        """The server writes beside its configuration."""
        copy = self.packages / "source"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self.folder, copy))

    def command(self, port: int) -> list[str]:
        return self.python("langgraph", "dev", "--no-browser", "--no-reload", "--allow-blocking", "--n-jobs-per-worker", "10", "--host", "127.0.0.1", "--port", str(port))

    def env(self) -> dict[str, str]:
        return {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false"}

    async def session(self, client: Client, name: str) -> str:
        return (await client.call(Call("/threads", json={}))).json()["thread_id"]

    def call(self, session: str, text: str, way: str) -> Call:
        return run(session, way, text)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        return {
            "capitals": run(session.upper(), "stream", text),
            "no hyphens": run(session.replace("-", ""), "stream", text),
            "the other path": run(session, "wait", text),
            "another assistant": run(session, "stream", text, "other"),
        }

    def refused(self, exchange: Exchange) -> bool:
        """As the server itself says it: its SDK shows `detail`."""
        return exchange.status == 409 and exchange.headers.get("x-seriatim-error") == "session_busy"


def run(thread: str, way: str, text: str, assistant: str = "agent") -> Call:
    messages = [{"role": "user", "content": text}]
    return Call(f"/threads/{thread}/runs/{way}", json={"assistant_id": assistant, "input": {"messages": messages}, "stream_mode": ["custom", "values"]})


backend = LangGraph()

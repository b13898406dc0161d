"""A2A: an agent of a2a-sdk, with protocol 1.0 and 0.3, JSON-RPC and HTTP+JSON."""

from __future__ import annotations

import itertools
import uuid

from client import Call, Client, Exchange
from protocol import Backend


class A2a(Backend):
    preset = "a2a"
    # "by task" names the task only.
    ways = {
        "SendStreamingMessage": True,
        "SendMessage": False,
        "message/stream": True,
        "message/send": False,
        "/message:stream": True,
        "/message:send": False,
        "SendStreamingMessage by task": True,
        "/message:stream by task": True,
    }
    leaves = "continues"
    differs = (r'"id": ?\d+',)

    def __init__(self) -> None:
        self.ids = itertools.count(1)

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    async def session(self, client: Client, name: str) -> dict[str, str]:
        """A task in a context of its own."""
        task = (await client.call(self.send("SendMessage", "hello", {}))).json()["result"]["task"]
        return {"contextId": task["contextId"], "taskId": task["id"]}

    def call(self, session: dict[str, str], text: str, way: str) -> Call:
        way, _, by_task = way.partition(" by ")
        return self.send(way, text, {"taskId": session["taskId"]} if by_task else {"contextId": session["contextId"]})

    def send(self, way: str, text: str, ids: dict[str, str]) -> Call:
        message = {"messageId": str(uuid.uuid4()), "role": "ROLE_USER", "parts": [{"text": text}], **ids}
        headers = {"a2a-version": "1.0"}
        if way.startswith("/"):
            return Call(way, json={"message": message}, headers=headers)
        if way.startswith("message/"):
            message |= {"kind": "message", "role": "user", "parts": [{"kind": "text", "text": text}]}
            headers = {}
        return Call("/", json={"jsonrpc": "2.0", "id": next(self.ids), "method": way, "params": {"message": message}}, headers=headers)

    def spellings(self, session: dict[str, str], text: str) -> dict[str, Call]:
        context = {"contextId": session["contextId"]}
        return {
            "snake case": self.send("SendMessage", text, {"context_id": session["contextId"]}),
            "with the task": self.send("SendMessage", text, session),
            "protocol 0.3": self.send("message/send", text, context),
            "HTTP+JSON": self.send("/message:send", text, context),
            "HTTP+JSON, snake case": self.send("/message:send", text, {"context_id": session["contextId"]}),
            "HTTP+JSON of a tenant": self.send("/acme/message:send", text, context),
        }

    def refused(self, exchange: Exchange) -> bool:
        """With JSON-RPC, clients read the error object of a response with status 200; else they show the status."""
        if exchange.call.path != "/":
            return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"
        answer = exchange.json()
        return exchange.status == 200 and isinstance(answer, dict) and answer.get("error", {}).get("code") == -32000


backend = A2a()

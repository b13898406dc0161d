"""How clients of MCP call tools over Streamable HTTP, with a protocol version that has sessions."""

from __future__ import annotations

import itertools
import json
from typing import Any

from client import Call, Client, Exchange
from protocol import Backend

VERSION = "2025-11-25"
ACCEPT = {"accept": "application/json, text/event-stream"}


class Mcp(Backend):
    """An MCP server whose tools `work` and `work_otherwise` take a `message`. A session is its id."""

    preset = "mcp"
    blocking = True
    ways = {"/mcp": True}
    # A client that wants a call to end sends notifications/cancelled.
    leaves = "continues"
    interrupts = False
    differs = (r'"id":\d+', r'"progressToken":\d+', r'"requestId":"?\d+"?')

    def __init__(self) -> None:
        self.ids = itertools.count(1)

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.python("python", "server.py")]

    async def session(self, client: Client, name: str) -> str:
        hello = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
        answer = await client.call(self.post({"method": "initialize", "params": hello, "id": next(self.ids)}))
        session = answer.headers["mcp-session-id"]
        await client.call(self.post({"method": "notifications/initialized"}, session))
        return session

    def call(self, session: str, text: str, way: str) -> Call:
        return self.post(self.request(text), session)

    def request(self, text: str, tool: str = "work") -> dict:
        id = next(self.ids)
        params = {"name": tool, "arguments": {"message": text}, "_meta": {"progressToken": id}}
        return {"method": "tools/call", "params": params, "id": id}

    def post(self, message: dict, session: str | None = None) -> Call:
        headers = ACCEPT if session is None else {**ACCEPT, "mcp-session-id": session, "mcp-protocol-version": VERSION}
        return Call("/mcp", json={"jsonrpc": "2.0", **message}, headers=headers)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        plain = self.post(self.request(text), session)
        escaped = json.dumps(plain.json).replace('"tools/call"', r'"t\u006fols\/call"').encode()
        capitals = {name.upper(): value for name, value in plain.headers.items()}
        return {
            "another tool": self.post(self.request(text, "work_otherwise"), session),
            "header in capitals": Call("/mcp", json=plain.json, headers=capitals),
            "escaped method": Call("/mcp", data=escaped, headers={**plain.headers, "content-type": "application/json"}),
        }

    def refused(self, exchange: Exchange) -> bool:
        """Clients show an error object with the request's id, in a response with status 200."""
        answer, sent = exchange.json(), exchange.call.json or json.loads(exchange.call.data)
        return (
            exchange.status == 200
            and isinstance(answer, dict)
            and answer.get("error", {}).get("code") == -32000
            and answer["id"] == sent["id"]
        )

    def goes_on(self, exchange: Exchange) -> bool:
        """A client closes the response when it has the result."""
        return any(is_result(event) for event in exchange.events())


def is_result(event: str) -> bool:
    try:
        message: Any = json.loads(event)
    except ValueError:
        return False
    return "method" not in message and ("result" in message or "error" in message)

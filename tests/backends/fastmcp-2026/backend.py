"""FastMCP with protocol 2026-07-28, which has no session of its own: the agent passes the id of one to each tool."""

from __future__ import annotations

import json
import re

from client import Call, Client
from mcp_calls import Mcp

VERSION = "2026-07-28"


class Mcp2026(Mcp):
    # Closing the response is how a client cancels a call.
    leaves = "cancels"

    async def session(self, client: Client, name: str) -> str:
        answer = await client.call(self.tool("create_session", {}))
        return re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.text)[0]

    def tool(self, tool: str, arguments: dict) -> Call:
        id = next(self.ids)
        meta = {
            "progressToken": id,
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        request = {"method": "tools/call", "params": {"name": tool, "arguments": arguments, "_meta": meta}, "id": id}
        call = self.post(request)
        return Call(call.path, json=call.json, headers={**call.headers, "mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": tool})

    def call(self, session: str, text: str, way: str) -> Call:
        return self.tool("work", {"message": text, "session_id": session})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        plain = self.call(session, text, "")
        escaped = json.dumps(plain.json).replace('"session_id"', r'"session\u005fid"').encode()
        return {
            "another tool": self.tool("work_otherwise", {"message": text, "session_id": session}),
            "with a session of the older protocol": Call("/mcp", json=plain.json, headers={**plain.headers, "mcp-session-id": "other"}),
            "escaped name": Call("/mcp", data=escaped, headers={**plain.headers, "content-type": "application/json"}),
        }


backend = Mcp2026()

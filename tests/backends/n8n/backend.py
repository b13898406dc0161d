"""n8n: a chat trigger before an agent with memory, called as n8n's chat page calls it."""

from __future__ import annotations

import asyncio
import uuid

from client import Call, Client, Exchange
from protocol import Backend

# For the webhooks to be there; n8n listens before.
LIMIT = 120.0


class N8n(Backend):
    preset = "n8n"
    ways = {"streamed": True, "whole": False}
    leaves = "continues"
    interrupts = False
    needs_model = True
    # Of an execution.
    differs = (r'"timestamp":\d+',)

    def command(self, port: int) -> list[str]:
        return ["env", f"N8N_PORT={port}", "sh", "start.sh", *self.node("../node_modules/n8n/bin/n8n")]

    def env(self) -> dict[str, str]:
        return {
            "MODEL": self.model_url,
            "N8N_USER_FOLDER": str(self.packages / "source"),
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            # It asks its own servers otherwise.
            "N8N_DIAGNOSTICS_ENABLED": "false",
            "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
            "N8N_TEMPLATES_ENABLED": "false",
        }

    async def ready(self, client: Client) -> None:
        async with asyncio.timeout(LIMIT):
            for way in self.ways:
                hello = Call(f"/webhook/{way}/chat", json={"action": "loadPreviousSession", "sessionId": "none"})
                # Until then, the answer says that n8n is starting up, with status 200.
                while (await client.begin(hello).over()).json() != {"data": []}:
                    await asyncio.sleep(0.2)

    async def session(self, client: Client, name: str) -> str:
        return f"{name}-{uuid.uuid4()}"

    def call(self, session: str, text: str, way: str) -> Call:
        return Call(f"/webhook/{way}/chat", json={"action": "sendMessage", "sessionId": session, "chatInput": text})

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        path, message = "/webhook/streamed/chat", {"sessionId": session, "chatInput": text}
        return {
            "without an action": Call(path, json=message),
            "another action": Call(path, json={"action": "other", **message}),
            "form": Call(path, form={"action": "sendMessage", **message}),
            "form without an action": Call(path, form=message),
            "multipart": multipart(path, {"action": "sendMessage", **message}),
            "multipart without an action": multipart(path, message),
        }

    def refused(self, exchange: Exchange) -> bool:
        """n8n's page shows the body of any response as the agent's answer."""
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def multipart(path: str, fields: dict[str, str]) -> Call:
    """A form as browsers send it, with a file. The agent shows the file to its model as the last message, so the file is the message, too."""
    parts = [f'form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts.append(f'form-data; name="files"; filename="a.txt"\r\ncontent-type: text/plain\r\n\r\n{fields["chatInput"]}')
    body = "".join(f"--x\r\ncontent-disposition: {part}\r\n" for part in parts) + "--x--\r\n"
    return Call(path, data=body.encode(), headers={"content-type": "multipart/form-data; boundary=x"})


backend = N8n()

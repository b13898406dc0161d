"""Flowise: a chain of a model with memory, made through its API, and called as its documentation tells."""

from __future__ import annotations

import json
import uuid

from client import Call, Client, Exchange
from protocol import Backend

PASSWORD = "Only-for-tests-1"
ACCOUNT = {"name": "Tests", "email": "tests@example.com", "credential": PASSWORD}


class Flowise(Backend):
    preset = "flowise"
    ways = {"stream": True, "whole": False}
    leaves = "continues"
    interrupts = False
    needs_model = True
    differs = (r'"(chatMessageId|timeQuoted)":"[^"]*"',)

    # The id of the flow.
    flow = ""

    def command(self, port: int) -> list[str]:
        return ["env", f"PORT={port}", *self.node("../node_modules/flowise/bin/run", "start")]

    def env(self) -> dict[str, str]:
        place = str(self.packages / "source")
        return {
            "HOST": "127.0.0.1",
            "FLOWISE_USER_HOME": place,
            "DATABASE_PATH": place,
            "DISABLE_FLOWISE_TELEMETRY": "true",
            "NODE_OPTIONS": "--import ./offline.mjs",
        }

    async def ready(self, client: Client) -> None:
        """Registers an account, and makes a flow."""
        await client.call(Call("/api/v1/account/register", json={"user": ACCOUNT}))
        hello = await client.call(Call("/api/v1/auth/login", json={"email": ACCOUNT["email"], "password": PASSWORD}))
        cookies = [value.split(";")[0] for value in hello.headers.getall("set-cookie")]
        headers = {"cookie": "; ".join(cookies), "x-request-from": "internal"}
        key = {"name": "model", "credentialName": "openAIApi", "plainDataObj": {"openAIApiKey": "none"}}
        credential = (await client.call(Call("/api/v1/credentials", json=key, headers=headers))).json()["id"]
        chart = json.dumps(self.chart(credential))
        flow = {"name": "chat", "type": "CHATFLOW", "deployed": True, "isPublic": True, "flowData": chart}
        self.flow = (await client.call(Call("/api/v1/chatflows", json=flow, headers=headers))).json()["id"]

    def chart(self, credential: str) -> dict:
        """What its canvas saves: a model and a memory, each with an edge to the chain."""

        def node(name: str, kind: str, category: str, inputs: dict, **more: object) -> dict:
            data = {"id": f"{name}_0", "name": name, "label": name, "type": kind, "category": category, "baseClasses": [kind]}
            data |= {"inputs": inputs, "inputAnchors": [], "inputParams": [], "outputs": {}, "outputAnchors": [], **more}
            return {"id": f"{name}_0", "type": "customNode", "position": {"x": 0, "y": 0}, "data": data}

        nodes = [
            node(
                "chatOpenAI",
                "ChatOpenAI",
                "Chat Models",
                {"modelName": "fake", "basepath": self.model_url, "streaming": True, "temperature": 0.5},
                credential=credential,
            ),
            node("bufferMemory", "BufferMemory", "Memory", {"sessionId": "", "memoryKey": "chat_history"}),
            node(
                "conversationChain",
                "ConversationChain",
                "Chains",
                {"model": "{{chatOpenAI_0.data.instance}}", "memory": "{{bufferMemory_0.data.instance}}", "systemMessagePrompt": "Answer."},
            ),
        ]
        edges = [
            {"id": source, "source": source, "target": "conversationChain_0", "sourceHandle": f"{source}-output", "targetHandle": f"conversationChain_0-input-{kind}"}
            for source, kind in (("chatOpenAI_0", "model"), ("bufferMemory_0", "memory"))
        ]
        return {"nodes": nodes, "edges": edges, "viewport": {"x": 0, "y": 0, "zoom": 1}}

    async def session(self, client: Client, name: str) -> str:
        return f"{name}-{uuid.uuid4()}"

    def call(self, session: str, text: str, way: str) -> Call:
        return self.predict({"question": text, "chatId": session, "streaming": way == "stream"})

    def predict(self, body: dict) -> Call:
        return Call(f"/api/v1/prediction/{self.flow}", json=body)

    def spellings(self, session: str, text: str) -> dict[str, Call]:
        path = f"/api/v1/prediction/{self.flow}"
        return {
            "session in overrideConfig": self.predict({"question": text, "overrideConfig": {"sessionId": session}}),
            "session and another chat": self.predict({"question": text, "chatId": f"{session}-x", "overrideConfig": {"sessionId": session}}),
            "form": Call(path, form={"question": text, "chatId": session}),
            "form, nested": Call(path, form={"question": text, "overrideConfig[sessionId]": session}),
            "multipart": multipart(path, {"question": text, "chatId": session}),
            "multipart, nested": multipart(path, {"question": text, "overrideConfig[sessionId]": session}),
        }

    def refused(self, exchange: Exchange) -> bool:
        return exchange.status == 429 and exchange.headers.get("x-seriatim-error") == "session_busy"


def multipart(path: str, fields: dict[str, str]) -> Call:
    """A form as browsers send it."""
    parts = [f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    body = "".join(parts) + "--x--\r\n"
    return Call(path, data=body.encode(), headers={"content-type": "multipart/form-data; boundary=x"})


backend = Flowise()

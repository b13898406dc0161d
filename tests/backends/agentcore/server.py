"""Bedrock AgentCore's runtime with an agent of Strands for each session, as its quickstart serves one. The model is a fake."""

import os

from bedrock_agentcore import BedrockAgentCoreApp
from strands import Agent
from strands.models import Model

import turn


class FakeModel(Model):
    def __init__(self, owner: str | None) -> None:
        self.owner = owner

    def update_config(self, **_) -> None:
        pass

    def get_config(self) -> dict:
        return {}

    def structured_output(self, *_, **__):
        raise NotImplementedError

    async def stream(self, messages, *_, **__):
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        async for piece in turn.stream(messages[-1]["content"][0]["text"], self.owner):
            yield {"contentBlockDelta": {"delta": {"text": piece}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


app = BedrockAgentCoreApp()
agents: dict[str | None, Agent] = {}


@app.entrypoint
async def invoke(payload, context):
    session = context.session_id
    agent = agents.setdefault(session, Agent(model=FakeModel(session), callback_handler=None))
    if payload.get("stream"):
        return pieces(agent, payload["prompt"])
    return str(await agent.invoke_async(payload["prompt"]))


async def pieces(agent: Agent, prompt: str):
    async for event in agent.stream_async(prompt):
        if "data" in event:
            yield event["data"]


app.run(host="127.0.0.1", port=int(os.environ["PORT"]))

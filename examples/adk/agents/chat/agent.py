"""The quickstart's agent, with a fake model. Its log is the proof that no two turns of a session overlap."""

import asyncio
from collections.abc import AsyncIterator

from google.adk.agents import Agent
from google.adk.agents.callback_context import CallbackContext
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.genai.types import Content, Part


class FakeModel(BaseLlm):
    """Says what it was told, word by word."""

    async def generate_content_async(self, request: LlmRequest, stream: bool = False) -> AsyncIterator[LlmResponse]:
        words = f"You said: {request.contents[-1].parts[0].text}".split()
        for word in words:
            await asyncio.sleep(0.5)
            if stream:
                yield LlmResponse(content=Content(role="model", parts=[Part(text=f"{word} ")]), partial=True)
        yield LlmResponse(content=Content(role="model", parts=[Part(text=" ".join(words))]))


def log(what: str, context: CallbackContext) -> None:
    print(f"{context.session.id} {what}: {context.user_content.parts[0].text}", flush=True)


root_agent = Agent(
    name="chat",
    model=FakeModel(model="fake"),
    before_agent_callback=lambda callback_context: log("begins", callback_context),
    after_agent_callback=lambda callback_context: log("ends", callback_context),
)

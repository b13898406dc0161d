"""The quickstart's agent, with a fake model. The model learns the session's name from its instruction."""

from collections.abc import AsyncGenerator

from google.adk.agents import Agent
from google.adk.agents.readonly_context import ReadonlyContext
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.genai import types

import turn


class FakeModel(BaseLlm):
    async def generate_content_async(self, llm_request: LlmRequest, stream: bool = False) -> AsyncGenerator[LlmResponse, None]:
        said = ""
        owner = llm_request.config.system_instruction
        async for piece in turn.stream(llm_request.contents[-1].parts[-1].text, owner.split("\n")[0]):
            said += piece
            if stream:
                yield LlmResponse(content=content(piece), partial=True)
        yield LlmResponse(content=content(said), partial=False)


def content(text: str) -> types.Content:
    return types.Content(role="model", parts=[types.Part(text=text)])


def instruction(context: ReadonlyContext) -> str:
    session = context.session
    return f"{session.app_name}/{session.user_id}/{session.id}"


root_agent = Agent(name="chat", model=FakeModel(model="fake"), instruction=instruction)

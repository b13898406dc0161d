"""An agent of pydantic-ai with a fake model, served over AG-UI."""

from pydantic_ai import Agent, RunContext
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.ui.ag_ui import AGUIAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import turn


async def work(messages, _):
    async for piece in turn.stream(messages[-1].parts[-1].content, messages[-1].instructions):
        yield piece


agent = Agent(FunctionModel(stream_function=work))


@agent.instructions
def conversation(context: RunContext) -> str | None:
    return context.conversation_id


async def run(request: Request) -> Response:
    return await AGUIAdapter.dispatch_request(request, agent=agent)


app = Starlette(routes=[Route("/agent", run, methods=["POST"])])

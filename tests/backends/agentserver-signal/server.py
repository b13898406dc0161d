"""An agent with the Responses API that looks at the signal of its server."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing

from azure.ai.agentserver.responses import CreateResponse, ResponseContext, ResponsesAgentServerHost, TextResponse

import turn

app = ResponsesAgentServerHost()


@app.response_handler
async def answer(request: CreateResponse, context: ResponseContext, cancelled: asyncio.Event) -> TextResponse:
    text = await context.get_input_text()

    async def pieces() -> AsyncIterator[str]:
        async with aclosing(turn.stream(text, context.conversation_id)) as stream:
            async for piece in stream:
                if cancelled.is_set():
                    return
                yield piece

    return TextResponse(context, request, text=pieces())


app.run(host="127.0.0.1", port=int(os.environ["PORT"]))

"""An agent with the Responses API, as the quickstart of azure-ai-agentserver-responses starts it."""

import asyncio
import os

from azure.ai.agentserver.responses import CreateResponse, ResponseContext, ResponsesAgentServerHost, TextResponse

import turn

app = ResponsesAgentServerHost()


@app.response_handler
async def answer(request: CreateResponse, context: ResponseContext, _cancelled: asyncio.Event) -> TextResponse:
    text = await context.get_input_text()
    return TextResponse(context, request, text=turn.stream(text, context.conversation_id))


app.run(host="127.0.0.1", port=int(os.environ["PORT"]))

"""LlamaIndex's workflow server with workflows that are fakes, as its documentation serves one."""

import asyncio
import os

from llama_agents.server import WorkflowServer
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

import turn


class Chat(Workflow):
    @step
    async def work(self, context: Context, event: StartEvent) -> StopEvent:
        # What the workflow knows of earlier runs of this handler.
        owner = await context.store.get("owner", default=None) or event.get("owner")
        await context.store.set("owner", owner)
        return StopEvent(result=await turn.answer(event.get("message"), owner))


server = WorkflowServer()
server.add_workflow("chat", Chat(timeout=None))
server.add_workflow("other", Chat(timeout=None))
asyncio.run(server.serve(host="127.0.0.1", port=int(os.environ["PORT"])))

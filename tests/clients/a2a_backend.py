"""An A2A agent: JSON-RPC at /, and HTTP+JSON. Its tasks go on until they are let go, or cancelled."""

from a2a.helpers.proto_helpers import new_task_from_user_message, new_text_part
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from serving import Turns, serve

turns = Turns()


class Agent(AgentExecutor):
    async def execute(self, context, event_queue):
        with turns.turn(context.context_id):
            await event_queue.enqueue_event(new_task_from_user_message(context.message))
            updater = TaskUpdater(event_queue, context.task_id, context.context_id)
            await updater.start_work()
            for piece in ["one", "两"]:
                await updater.add_artifact([new_text_part(piece)], artifact_id="a", append=piece != "one")
                await turns.gate(context.context_id)
            await updater.complete()

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def card_at(url):
    offers = [("JSONRPC", "1.0"), ("HTTP+JSON", "1.0"), ("JSONRPC", "0.3")]
    interfaces = [AgentInterface(url=url, protocol_binding=b, protocol_version=v) for b, v in offers]
    return AgentCard(
        name="tests",
        description="An agent for tests",
        version="1",
        supported_interfaces=interfaces,
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="s", name="waiting", description="waits", tags=["test"])],
    )


async def card(request):
    """Its own address is the one that it was asked at."""
    return JSONResponse(agent_card_to_dict(card_at(str(request.base_url).rstrip("/"))))


handler = DefaultRequestHandler(Agent(), InMemoryTaskStore(), card_at("http://test"))
serve(
    Starlette(
        routes=[
            Route("/.well-known/agent-card.json", card),
            *turns.routes(),
            *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
            *create_rest_routes(handler),
        ]
    )
)

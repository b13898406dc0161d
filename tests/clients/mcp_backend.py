"""An MCP server whose tools ask back, take their time, and tell of their progress."""

from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from serving import Turns, serve

server = MCPServer("tests", log_level="CRITICAL")
turns = Turns()


class Answer(BaseModel):
    name: str


@server.tool()
async def greet(greeting: str, context: Context) -> str:
    """Asks its caller for a name, in the middle of the call."""
    answer = await context.elicit("Who are you?", Answer)
    return f"{greeting}, {answer.data.name}!" if answer.action == "accept" else answer.action


@server.tool()
async def slow(session: str, context: Context) -> str:
    """Takes as long as its gate is closed."""
    with turns.turn(session):
        await context.report_progress(1, 2, "begun")
        # Not of the call: it goes the way of the session's GET.
        await context.session.send_resource_updated(f"test://{session}")
        await turns.gate(session)
        await context.report_progress(2, 2, "ended")
    return "done"


@server.custom_route("/go/{session}", ["POST"])
async def go(request: Request):
    turns.gates[request.path_params["session"]].release()
    return JSONResponse({})


@server.custom_route("/seen/{session}", ["GET"])
async def seen(request: Request):
    session = request.path_params["session"]
    return JSONResponse({"turns": turns.turns[session], "most": turns.most[session]})


serve(server.streamable_http_app())

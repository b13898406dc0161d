"""A server of the `mcp` package over Streamable HTTP, with sessions, as its quickstart starts it."""

import os

from mcp.server.mcpserver import Context, MCPServer

import turn

server = MCPServer("tests", log_level="INFO")


@server.tool()
async def work(message: str, context: Context) -> str:
    """Works as long as the message says, and tells of its progress."""
    said = []
    async for piece in turn.stream(message, context.request_context.request.headers.get("mcp-session-id")):
        said.append(piece)
        await context.report_progress(len(said), None, piece)
    return "".join(said)


@server.tool()
async def work_otherwise(message: str, context: Context) -> str:
    """Another tool of the same session."""
    return await work(message, context)


server.run(transport="streamable-http", host="127.0.0.1", port=int(os.environ["PORT"]))

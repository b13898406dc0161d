"""A FastMCP server over HTTP whose tools keep state in sessions of protocol 2026-07-28: FastMCP's SessionId."""

import os

from fastmcp import Context, FastMCP
from fastmcp.server.dependencies import get_session
from fastmcp.server.sessions import SessionId, SessionProvider

import turn

server = FastMCP("tests")
server.add_provider(SessionProvider())


async def worked(message: str, session_id: str, context: Context) -> str:
    session = await get_session(session_id)
    await session.set("last", message)
    said = []
    async for piece in turn.stream(message, session_id):
        said.append(piece)
        await context.report_progress(len(said), None, piece)
    return "".join(said)


@server.tool
async def work(message: str, session_id: SessionId, context: Context) -> str:
    """Works as long as the message says, and tells of its progress."""
    return await worked(message, session_id, context)


@server.tool
async def work_otherwise(message: str, session_id: SessionId, context: Context) -> str:
    """Another tool of the same session."""
    return await worked(message, session_id, context)


server.run(transport="http", host="127.0.0.1", port=int(os.environ["PORT"]))

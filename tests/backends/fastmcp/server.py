"""A FastMCP server over HTTP, as its quickstart starts it."""

import os

from fastmcp import Context, FastMCP

import turn

server = FastMCP("tests")


async def worked(message: str, context: Context) -> str:
    said = []
    async for piece in turn.stream(message, context.session_id):
        said.append(piece)
        await context.report_progress(len(said), None, piece)
    return "".join(said)


@server.tool
async def work(message: str, context: Context) -> str:
    """Works as long as the message says, and tells of its progress."""
    return await worked(message, context)


@server.tool
async def work_otherwise(message: str, context: Context) -> str:
    """Another tool of the same session."""
    return await worked(message, context)


server.run(transport="http", host="127.0.0.1", port=int(os.environ["PORT"]))

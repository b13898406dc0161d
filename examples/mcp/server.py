"""An MCP server over Streamable HTTP. Its tool works for some seconds."""

import asyncio

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("notes")


@server.tool()
async def write(text: str, session_id: str, context: Context) -> str:
    """Writes a note. The log is the proof that no two calls of a session overlap."""
    print(f"{session_id} begins: {text}", flush=True)
    for done in range(4):
        await context.report_progress(done, 4)
        await asyncio.sleep(0.5)
    print(f"{session_id} ends: {text}", flush=True)
    return f"written: {text}"


server.run(transport="streamable-http", host="127.0.0.1", port=8000)

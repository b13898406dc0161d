"""Calls the tool three times at once in one session, as a model does that calls tools in parallel."""

import asyncio

from mcp import Client


async def main() -> None:
    async with Client("http://127.0.0.1:8080/mcp") as client:

        async def call(text: str) -> None:
            result = await client.call_tool("write", {"session_id": "session_123", "text": text})
            print(result.content[0].text)

        await asyncio.gather(call("note 1"), call("note 2"), call("note 3"))


asyncio.run(main())

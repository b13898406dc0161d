"""The `mcp` package over Streamable HTTP against URL. Prints what it saw, as JSON.

Usage: mcp_client.py URL observe|contend|wait. `observe` is the same with the proxy between and
without; `contend` and `wait` are what a session's lock makes of two tools called at once.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import httpx2
from mcp import MCPError
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import ElicitResult, ResourceUpdatedNotification

URL = sys.argv[1]


async def go(session):
    async with httpx2.AsyncClient() as client:
        (await client.post(f"{URL}/go/{session}")).raise_for_status()


async def seen(session):
    async with httpx2.AsyncClient() as client:
        return (await client.get(f"{URL}/seen/{session}")).json()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(mode="legacy"):
    """A client with a session; `client.told` is what the server told it beside its answers."""
    told, requests = [], []

    async def asked(_context, params):
        told.append(params.message)
        return ElicitResult(action="accept", content={"name": "Ada"})

    async def message(message):
        if isinstance(message, ResourceUpdatedNotification):
            told.append(message.params.uri)

    async def answered(response):
        await response.aread() if response.status_code >= 400 else None
        requests.append([response.request.method, response.status_code])

    http = create_mcp_http_client()
    http.event_hooks["response"].append(answered)
    async with http:
        transport = streamable_http_client(f"{URL}/mcp", http_client=http)
        options = {"mode": mode, "elicitation_callback": asked, "message_handler": message}
        async with Client(transport, **options) as client:
            # The GET of the session stays open from here on.
            if mode == "legacy":
                await until(lambda: ["GET", 200] in requests)
            yield client, told, requests


def text(result):
    return [content.text for content in result.content]


async def observe():
    saw = {}
    async with connected() as (client, told, requests):
        saw["version"] = [client.protocol_version, client.server_info.name]
        saw["tools"] = [tool.name for tool in (await client.list_tools()).tools]
        # The answer to what the tool asks is another POST of the session, while this one runs.
        saw["greet"] = text(await client.call_tool("greet", {"greeting": "Hello 你好"}))
        saw["progress"] = []

        async def progress(*what):
            saw["progress"].append(what)

        slow = client.call_tool("slow", {"session": "o"}, progress_callback=progress)
        running = asyncio.create_task(slow)
        await until(lambda: saw["progress"] and len(told) == 2)
        # While it runs, the rest of the session does, too.
        await client.send_ping()
        saw["tools again"] = len((await client.list_tools(cache_mode="bypass")).tools)
        await go("o")
        saw["slow"] = text(await running)
        saw["told"] = told
        saw["unknown"] = (await client.call_tool("nothing", {})).is_error
    saw["requests"] = sorted(requests)
    async with connected("auto") as (client, told, requests):
        saw["modern"] = [client.protocol_version, [tool.name for tool in (await client.list_tools()).tools]]
        slow = asyncio.create_task(client.call_tool("slow", {"session": "m"}))
        await go("m")
        saw["modern slow"] = text(await slow)
    saw["modern requests"] = sorted(requests)
    return saw


async def contend():
    saw = {}
    async with connected() as (client, told, requests):
        first = asyncio.create_task(client.call_tool("slow", {"session": "c"}))
        await until(lambda: told)
        try:
            await client.call_tool("slow", {"session": "c"})
        except MCPError as error:
            saw["busy"] = [error.code, error.message, error.data]
        # What is no turn goes on.
        await client.send_ping()
        async with connected() as (other, *_):
            saw["other session"] = text(await other.call_tool("greet", {"greeting": "Hi"}))
        await go("c")
        saw["first"] = text(await first)
        await go("c")
        saw["after"] = text(await client.call_tool("slow", {"session": "c"}))
        # A call that is cancelled is over, and frees its session.
        cancelled = asyncio.create_task(client.call_tool("slow", {"session": "cancelled"}))
        await until(lambda: "test://cancelled" in told)
        cancelled.cancel()
        await go("next")
        async with asyncio.timeout(20):
            while "next" not in saw:
                try:
                    saw["next"] = text(await client.call_tool("slow", {"session": "next"}))
                except MCPError:
                    await asyncio.sleep(0.01)
    saw["seen"] = await seen("c")
    saw["cancelled"] = await seen("cancelled")
    return saw


async def wait():
    saw = {}
    async with connected() as (client, told, requests):
        calls = [client.call_tool("slow", {"session": "w"}) for _ in range(3)]
        running = [asyncio.create_task(call) for call in calls]
        for n in range(3):
            await until(lambda: len(told) == n + 1)
            await go("w")
        saw["results"] = [text(await call) for call in running]
    saw["seen"] = await seen("w")
    return saw


what = {"observe": observe, "contend": contend, "wait": wait}[sys.argv[2]]
print(json.dumps(asyncio.run(what())))

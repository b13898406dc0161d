"""Python clients whose turn waits behind another one at URL. Prints what each of them shows, as JSON.

Usage: waiting_client.py URL plain|wait|fail. `plain`: no other turn; `wait`: the other turn ends while the client
waits; `fail`: it doesn't.
"""

import asyncio
import json
import sys
import uuid
from contextlib import asynccontextmanager

import httpx
import openai
from langgraph_sdk import get_client

URL, WHAT = sys.argv[1:]


class Head:
    """Notes when the head of a response has come."""

    def __init__(self):
        self.came = asyncio.Event()

    async def note(self, response):
        if "event-stream" in response.headers.get("content-type", ""):
            self.came.set()


async def seen(own, session):
    turns = (await own.get(f"/seen/{session}")).json()["turns"]
    return [turn["kind"] for turn in turns]


@asynccontextmanager
async def other_turn(session, head, saw):
    """The other turn of the session. If it ends, it does after the client has the head of its response."""
    async with httpx.AsyncClient(base_url=URL, timeout=30) as own:
        if WHAT == "plain":
            yield
            return
        async with own.stream("POST", f"/hold/{session}") as held:
            # A generator that nobody has any more would close the response.
            pieces = held.aiter_raw()
            await anext(pieces)

            async def end():
                await head.came.wait()
                saw["before"] = await seen(own, session)
                await own.post(f"/go/{session}")

            ending = asyncio.create_task(end()) if WHAT == "wait" else None
            yield
            if ending:
                await ending


async def openai_chat():
    session, head, saw = str(uuid.uuid4()), Head(), {}
    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [head.note]})
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k", http_client=http)
    async with other_turn(session, head, saw):
        try:
            stream = await client.chat.completions.create(
                model="test",
                stream=True,
                messages=[{"role": "user", "content": "hi"}],
                extra_headers={"x-session-id": session},
            )
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            saw["shows"] = "".join(texts)
        except openai.APIError as error:
            saw["error"] = [type(error).__name__, error.message, error.code]
        except TypeError as error:  # from the line above, for an event that is no chunk
            saw["error"] = [type(error).__name__]
    return saw


async def openai_responses():
    session, head, saw = str(uuid.uuid4()), Head(), {}
    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [head.note]})
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k", http_client=http)
    async with other_turn(session, head, saw):
        try:
            stream = await client.responses.create(model="test", input="hi", conversation=session, stream=True)
            texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            saw["shows"] = "".join(texts)
        except openai.APIError as error:
            saw["error"] = [type(error).__name__, error.message, error.code]
    return saw


async def langgraph():
    session, head, saw = str(uuid.uuid4()), Head(), {}
    client = get_client(url=URL)
    client.http.client.event_hooks = {"response": [head.note]}
    async with other_turn(session, head, saw):
        texts = []
        run = client.runs.stream(session, "agent", input={"messages": "hi"}, stream_mode="messages")
        async for part in run:
            if part.event == "messages":
                texts.append(part.data[0]["content"])
            elif part.event == "error":
                saw["error"] = ["StreamPart", part.data["error"], part.data["status_code"]]
        saw["shows"] = "".join(texts)
    return saw


async def main():
    async with asyncio.timeout(60):
        clients = [openai_chat, openai_responses, langgraph]
        saw = await asyncio.gather(*(client() for client in clients))
    print(json.dumps({client.__name__: one for client, one in zip(clients, saw)}))


asyncio.run(main())

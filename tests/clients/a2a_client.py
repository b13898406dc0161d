"""The `a2a-sdk` against URL, over JSON-RPC and over HTTP+JSON. Prints what it saw, as JSON.

Usage: a2a_client.py URL observe|contend. `observe` is the same with the proxy between and without;
`contend` is what a session's lock makes of two messages at once.
"""

import asyncio
import json
import sys

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
    TaskState,
)

URL = sys.argv[1]
INTERFACES = ["JSONRPC 1.0", "HTTP+JSON 1.0", "JSONRPC 0.3"]


async def go(session):
    async with httpx.AsyncClient() as client:
        (await client.post(f"{URL}/go/{session}")).raise_for_status()


async def seen(session):
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{URL}/seen/{session}")).json()


def message(session):
    parts = [Part(text="hi 你好")]
    return SendMessageRequest(
        message=Message(message_id="m", context_id=session, role=Role.ROLE_USER, parts=parts)
    )


def told(event):
    """What an event of a stream says, without what is new each time."""
    match event.WhichOneof("payload"):
        case "task":
            return ["task", event.task.context_id, TaskState.Name(event.task.status.state)]
        case "status_update":
            return TaskState.Name(event.status_update.status.state)
        case "artifact_update":
            return event.artifact_update.artifact.parts[0].text


async def connected(interface):
    """A client for what the agent's card offers, at the address that it names: the proxy's."""
    binding, version = interface.split()
    async with httpx.AsyncClient() as client:
        card = await A2ACardResolver(client, URL).get_agent_card()
    for offer in list(card.supported_interfaces):
        if offer.protocol_version != version:
            card.supported_interfaces.remove(offer)
    return ClientFactory(ClientConfig(supported_protocol_bindings=[binding])).create(card)


async def begin(client, session):
    """Sends a message; returns its task's id, its stream, and what came up to the first artifact."""
    stream = aiter(client.send_message(message(session)))
    events = []
    while "one" not in events:
        event = await anext(stream)
        if event.HasField("task"):
            task = event.task.id
        events.append(told(event))
    return task, stream, events


async def observe():
    saw = {}
    for interface in INTERFACES:
        client = await connected(interface)
        session = f"whole {interface}"
        _, stream, events = await begin(client, session)
        for _ in range(2):
            await go(session)
        saw[session] = events + [told(event) async for event in stream]
        # Cancelling is another request of the session, at the address that it streams from.
        session = f"cancel {interface}"
        task, stream, events = await begin(client, session)
        state = (await client.get_task(GetTaskRequest(id=task))).status.state
        cancelled = (await client.cancel_task(CancelTaskRequest(id=task))).status.state
        saw[session] = events + [told(event) async for event in stream]
        saw[session] += [TaskState.Name(state), TaskState.Name(cancelled), await seen(session)]
        # Another one may listen to a task that runs.
        session = f"subscribe {interface}"
        task, stream, events = await begin(client, session)
        other = aiter(client.subscribe(SubscribeToTaskRequest(id=task)))
        events.append(told(await anext(other)))
        for _ in range(2):
            await go(session)
        saw[session] = events + [told(event) async for event in stream]
        saw[session] += [told(event) async for event in other]
        await client.close()
    return saw


async def contend():
    saw = {}
    for interface in INTERFACES:
        client = await connected(interface)
        session = f"busy {interface}"
        task, stream, events = await begin(client, session)
        try:
            await begin(client, session)
        except A2AClientError as error:
            saw[f"refused {interface}"] = [type(error).__name__, str(error).splitlines()[0].replace(URL, "")]
        cancelled = (await client.cancel_task(CancelTaskRequest(id=task))).status.state
        events += [told(event) async for event in stream]
        # When the stream has ended, the session is free.
        _, stream, again = await begin(client, session)
        for _ in range(2):
            await go(session)
        again += [told(event) async for event in stream]
        saw[session] = [events, TaskState.Name(cancelled), again, await seen(session)]
        await client.close()
    return saw


print(json.dumps(asyncio.run({"observe": observe, "contend": contend}[sys.argv[2]]())))

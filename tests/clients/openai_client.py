"""The `openai` package for Python against URL. Prints what it saw, as JSON.

Usage: openai_client.py URL observe|contend. `observe` is the same with the proxy between and without;
`contend` is what a session's lock makes of two turns at once.
"""

import asyncio
import json
import sys

import anyio
import httpx2
import openai

URL = sys.argv[1]
MODEL = {"model": "test"}


def chat(session, text="hi", **options):
    messages = [{"role": "user", "content": text}]
    return {**MODEL, "messages": messages, "extra_headers": {"x-session-id": session}, **options}


def go(session):
    httpx2.post(f"{URL}/go/{session}").raise_for_status()


def seen(session):
    return httpx2.get(f"{URL}/seen/{session}").json()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def observe():
    saw = {}
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="k")
    # Each event is let go by the one before: nothing in between may hold one back.
    chunks = []
    with client.chat.completions.create(**chat("sync", stream=True)) as stream:
        headers = stream.response.headers.multi_items()
        saw["headers"] = [header for header in headers if header[0] != "date"]
        for chunk in stream:
            chunks.append(chunk.to_dict())
            go("sync")
    saw["chat"] = chunks
    answer = client.chat.completions.create(**chat("plain", "limited"))
    saw["retried"] = [answer.to_dict(), answer._request_id, seen("plain")]
    try:
        client.chat.completions.create(**chat("refused", "refused"))
    except openai.BadRequestError as error:
        saw["refused"] = [error.message, error.body, error.code, error.request_id]

    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k")
    events = []
    turn = {**MODEL, "input": "hi", "conversation": "async"}
    async with client.responses.stream(**turn) as stream:
        async for event in stream:
            events.append(event.to_dict(warnings=False))
            await asyncio.to_thread(go, "async")
        saw["final"] = (await stream.get_final_response()).output_text
    saw["responses"] = events
    stream = await client.chat.completions.create(**chat("left", stream=True))
    saw["first"] = (await anext(aiter(stream))).to_dict()
    await stream.close()
    await until(lambda: seen("left")["turns"][0]["end"] == "left")
    saw["seen"] = {session: seen(session) for session in ["sync", "async", "left"]}
    return saw


async def contend():
    saw = {}
    statuses, asked, paused = [], [], []
    refused = asyncio.Event()
    sleep = anyio.sleep

    # The package sleeps with this before it tries again.
    async def noted(seconds):
        paused.append(round(seconds * 1000))
        await sleep(seconds)

    anyio.sleep = noted

    async def answered(response):
        statuses.append(response.status_code)
        if response.status_code == 429:
            asked.append(int(response.headers["retry-after-ms"]))
            refused.set()

    hooked = httpx2.AsyncClient(event_hooks={"response": [answered]})
    first = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k")
    second = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="k", http_client=hooked)
    stream = await first.chat.completions.create(**chat("s", stream=True))
    running = aiter(stream)
    texts = [(await anext(running)).choices[0].delta.content]
    try:
        await second.with_options(max_retries=0).chat.completions.create(**chat("s"))
    except openai.RateLimitError as error:
        saw["busy"] = [error.status_code, error.message, error.body]
        saw["busy"] += [error.response.headers[name] for name in ("x-seriatim-error", "retry-after")]
    # The longer the first turn runs, the longer is the time. Below a second it would be a whole one.
    async with asyncio.timeout(20):
        while asked[-1] <= 1000:
            try:
                await second.with_options(max_retries=0).chat.completions.create(**chat("s"))
            except openai.RateLimitError:
                pass
    for record in (statuses, asked, paused):
        record.clear()
    refused.clear()
    # The package's own retries reach the session. On a busy machine the first turn may outlast one of them.
    patient = second.with_options(max_retries=20)
    retrying = asyncio.create_task(patient.chat.completions.create(**chat("s")))
    await refused.wait()
    for _ in range(4):
        await asyncio.to_thread(go, "s")
    async for chunk in running:
        texts.append(chunk.choices[0].delta.content or "")
    saw["first"] = "".join(texts)
    saw["second"] = (await retrying).choices[0].message.content
    saw |= {"statuses": list(statuses), "asked": list(asked), "paused": list(paused)}
    saw["seen"] = seen("s")
    # One that leaves frees its session; the next one's retries reach it.
    stream = await first.chat.completions.create(**chat("gone", stream=True))
    await anext(aiter(stream))
    await stream.close()
    await until(lambda: seen("gone")["turns"][0]["end"] == "left")
    after = await second.with_options(max_retries=20).chat.completions.create(**chat("gone"))
    saw["after"] = after.choices[0].message.content
    saw["gone"] = seen("gone")
    return saw


print(json.dumps(asyncio.run({"observe": observe, "contend": contend}[sys.argv[2]]())))

"""The action server, with the protocol of rasa_sdk: the turn is its only action."""

import os

from aiohttp import web

import turn


async def run(request: web.Request) -> web.Response:
    tracker = (await request.json())["tracker"]
    text = await turn.answer(tracker["latest_message"]["text"], tracker["sender_id"])
    return web.json_response({"events": [], "responses": [{"text": text}]})


app = web.Application()
app.router.add_post("/webhook", run)
web.run_app(app, host="127.0.0.1", port=int(os.environ["ACTIONS_PORT"]), print=None)

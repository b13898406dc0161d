"""Sanic: typed path parameters, JSON where it is declared, or else the form."""

import logging
import sys
from uuid import UUID

from record import ran
from sanic import Sanic, response
from sanic.exceptions import BadRequest

logging.disable(logging.CRITICAL)
app = Sanic("differential", configure_logging=False)
app.config.FALLBACK_ERROR_FORMAT = "text"


def turn(request, route, session, **more):
    return response.json(ran(request.headers.get("x-case"), route, session, **more))


def checked(kind, text):
    try:
        return kind(text)
    except (TypeError, ValueError, AttributeError):
        raise BadRequest from None


def member(request):
    body = request.json
    return body.get("session_id") if isinstance(body, dict) else None


@app.post("/chat", name="chat")
@app.post("/both", name="both")
async def chat(request):
    declared = (request.content_type or "").startswith("application/json")
    return turn(request, request.path.strip("/"), member(request) if declared else request.form.get("session_id"))


@app.post("/json")
async def json(request):
    return turn(request, "json", member(request))


@app.post("/either")
async def either(request):
    try:
        body = request.json
    except BadRequest:
        body = request.form
    return turn(request, "either", body.get("session_id"))


@app.post("/form")
async def form(request):
    return turn(request, "form", request.form.get("session_id"))


@app.get("/query")
async def query(request):
    return turn(request, "query", request.args.get("session_id"))


@app.put("/put")
async def put(request):
    return turn(request, "put", request.args.get("session_id"))


@app.post("/header")
async def header(request):
    headers = request.headers
    return turn(request, "header", headers.get("x-session-id"), user=headers.get("x-user-id"), forwarded=headers.get("x-forwarded-for"))


@app.post("/cookie")
async def cookie(request):
    return turn(request, "cookie", request.cookies.get("session_id"))


@app.route("/thread/<id>", methods=["GET", "POST"])
async def thread(request, id):
    return turn(request, "thread", id)


@app.post("/mode/<id>")
async def mode(request, id):
    return turn(request, "mode", id) if request.headers.get("x-mode") == "chat" else response.empty()


@app.post("/halt/<id>")
async def halt(request, id):
    return turn(request, "halt", id) if request.headers.get("x-mode") != "stop" else response.empty()


@app.post("/kind/<id>")
async def kind(request, id):
    kind = (request.content_type or "").split(";")[0].strip()
    return turn(request, "kind", id) if kind == "application/json" else response.empty()


@app.post("/action")
async def action(request):
    declared = (request.content_type or "").startswith("application/json")
    body = request.json if declared else request.form
    return turn(request, "action", body.get("session_id")) if body.get("action") == "chat" else response.empty()


@app.post("/command")
async def command(request):
    body = request.json
    return turn(request, "command", body.get("session_id")) if body.get("action") != "stop" else response.empty()


@app.post("/submit")
async def submit(request):
    return turn(request, "submit", request.form.get("session_id")) if request.form.get("action") == "chat" else response.empty()


@app.post("/path/<id>/runs")
async def runs(request, id):
    return turn(request, "runs", id)


@app.post("/uuid")
async def uuid(request):
    return turn(request, "uuid", checked(UUID, member(request)))


@app.get("/uuid/<id:uuid>")
async def uuid_path(request, id):
    return turn(request, "uuid-path", id)


@app.get("/uuidq")
async def uuid_query(request):
    return turn(request, "uuid-query", checked(UUID, request.args.get("session_id")))


@app.post("/int")
async def integer(request):
    return turn(request, "int", checked(int, member(request)))


@app.get("/int/<id:int>")
async def int_path(request, id):
    return turn(request, "int-path", id)


@app.get("/intq")
async def int_query(request):
    return turn(request, "int-query", checked(int, request.args.get("session_id")))


@app.get("/lower")
async def lower(request):
    return turn(request, "lower", request.args.get("session_id", "").lower())


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]), single_process=True, access_log=False, motd=False)

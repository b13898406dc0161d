"""Bottle on its own server: JSON where it is declared, or else the form."""

import json as stdlib_json
import sys
from uuid import UUID

from bottle import Bottle, HTTPError, request
from record import ran

app = Bottle()


def turn(route, session, **more):
    return ran(request.get_header("x-case"), route, session, **more)


def member():
    body = request.json
    return body.get("session_id") if isinstance(body, dict) else None


def checked(kind, text):
    try:
        return kind(text)
    except (TypeError, ValueError, AttributeError):
        raise HTTPError(400) from None


@app.post("/chat")
def chat():
    return turn("chat", member() or request.forms.get("session_id"))


@app.post("/both")
def both():
    return turn("both", member() or request.forms.get("session_id"))


@app.post("/json")
def json():
    return turn("json", member())


@app.post("/either")
def either():
    try:
        body = stdlib_json.load(request.body)
    except ValueError:
        body = request.forms
    return turn("either", body.get("session_id"))


@app.post("/form")
def form():
    return turn("form", request.forms.get("session_id"))


@app.get("/query")
def query():
    return turn("query", request.query.get("session_id"))


@app.put("/put")
def put():
    return turn("put", request.query.get("session_id"))


@app.post("/header")
def header():
    headers = request.headers
    return turn("header", headers.get("X-Session-Id"), user=headers.get("X-User-Id"), forwarded=headers.get("X-Forwarded-For"))


@app.post("/cookie")
def cookie():
    return turn("cookie", request.get_cookie("session_id"))


@app.route("/thread/<id>", method=["GET", "POST"])
def thread(id):
    return turn("thread", id)


@app.post("/mode/<id>")
def mode(id):
    return turn("mode", id) if request.get_header("X-Mode") == "chat" else ""


@app.post("/halt/<id>")
def halt(id):
    return turn("halt", id) if request.get_header("X-Mode") != "stop" else ""


@app.post("/kind/<id>")
def kind(id):
    return turn("kind", id) if request.content_type.split(";")[0].strip() == "application/json" else ""


@app.post("/action")
def action():
    body = request.json or request.forms
    return turn("action", body.get("session_id")) if body.get("action") == "chat" else ""


@app.post("/command")
def command():
    body = request.json
    return turn("command", body.get("session_id")) if body.get("action") != "stop" else ""


@app.post("/submit")
def submit():
    return turn("submit", request.forms.get("session_id")) if request.forms.get("action") == "chat" else ""


@app.post("/path/<id>/runs")
def runs(id):
    return turn("runs", id)


@app.post("/uuid")
def uuid():
    return turn("uuid", checked(UUID, member()))


@app.get("/uuid/<id>")
def uuid_path(id):
    return turn("uuid-path", checked(UUID, id))


@app.get("/uuidq")
def uuid_query():
    return turn("uuid-query", checked(UUID, request.query.get("session_id")))


@app.post("/int")
def integer():
    return turn("int", checked(int, member()))


@app.get("/int/<id:int>")
def int_path(id):
    return turn("int-path", id)


@app.get("/intq")
def int_query():
    return turn("int-query", checked(int, request.query.get("session_id")))


@app.get("/lower")
def lower():
    return turn("lower", request.query.session_id.lower())


app.run(host="127.0.0.1", port=int(sys.argv[1]), quiet=True)

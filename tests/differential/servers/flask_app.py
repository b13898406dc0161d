"""Flask: JSON, or else the form."""

import sys
from uuid import UUID

from flask import Flask, request
from record import ran

app = Flask(__name__)


def turn(route, session, **more):
    return ran(request.headers.get("x-case"), route, session, **more)


@app.post("/chat")
@app.post("/both", endpoint="both")
def chat():
    body = request.get_json(silent=True) or request.form
    return turn(request.path.strip("/"), body.get("session_id"))


@app.post("/json")
def json():
    return turn("json", request.get_json(force=True).get("session_id"))


@app.post("/either")
def either():
    body = request.get_json(force=True, silent=True) or request.form
    return turn("either", body.get("session_id"))


@app.post("/form")
def form():
    return turn("form", request.form.get("session_id"))


@app.get("/query")
def query():
    return turn("query", request.args.get("session_id"))


@app.put("/put")
def put():
    return turn("put", request.args.get("session_id"))


@app.post("/header")
def header():
    headers = request.headers
    return turn("header", headers.get("X-Session-Id"), user=headers.get("X-User-Id"), forwarded=headers.get("X-Forwarded-For"))


@app.post("/cookie")
def cookie():
    return turn("cookie", request.cookies.get("session_id"))


@app.route("/thread/<id>", methods=["GET", "POST"])
def thread(id):
    return turn("thread", id)


@app.post("/path/<id>/runs")
def runs(id):
    return turn("runs", id)


@app.post("/uuid")
def uuid():
    return turn("uuid", UUID(request.get_json()["session_id"]))


@app.get("/uuid/<uuid:id>")
def uuid_path(id):
    return turn("uuid-path", id)


@app.get("/uuidq")
def uuid_query():
    return turn("uuid-query", request.args.get("session_id", type=UUID))


@app.post("/int")
def integer():
    return turn("int", int(request.get_json()["session_id"]))


@app.get("/int/<int:id>")
def int_path(id):
    return turn("int-path", id)


@app.get("/intq")
def int_query():
    return turn("int-query", request.args.get("session_id", type=int))


@app.post("/mode/<id>")
def mode(id):
    return turn("mode", id) if request.headers.get("X-Mode") == "chat" else ""


@app.post("/halt/<id>")
def halt(id):
    return turn("halt", id) if request.headers.get("X-Mode") != "stop" else ""


@app.post("/kind/<id>")
def kind(id):
    return turn("kind", id) if request.mimetype == "application/json" else ""


@app.post("/action")
def action():
    body = request.get_json(silent=True) or request.form
    return turn("action", body.get("session_id")) if body.get("action") == "chat" else ""


@app.post("/command")
def command():
    body = request.get_json(force=True)
    return turn("command", body.get("session_id")) if body.get("action") != "stop" else ""


@app.post("/submit")
def submit():
    return turn("submit", request.form.get("session_id")) if request.form.get("action") == "chat" else ""


@app.get("/lower")
def lower():
    return turn("lower", request.args.get("session_id", "").lower())


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), threaded=True)

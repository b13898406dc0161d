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


@app.get("/lower")
def lower():
    return turn("lower", request.args.get("session_id", "").lower())


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), threaded=True)

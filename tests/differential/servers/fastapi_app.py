"""FastAPI: typed parameters where it offers them, Starlette's reading of the body elsewhere."""

from typing import Annotated
from uuid import UUID

from fastapi import Cookie, FastAPI, Form, Header, Request
from pydantic import BaseModel
from record import ran

app = FastAPI()
Case = Annotated[str | None, Header(alias="x-case")]


class Turn(BaseModel):
    session_id: str | None = None


class UuidTurn(BaseModel):
    session_id: UUID


class IntTurn(BaseModel):
    session_id: int


@app.post("/chat")
async def chat(turn: Turn, x_case: Case = None):
    return ran(x_case, "chat", turn.session_id)


@app.post("/json")
async def json(request: Request):
    body = await request.json()
    return ran(request.headers.get("x-case"), "json", body.get("session_id"))


@app.post("/both")
async def both(request: Request):
    if request.headers.get("content-type", "").startswith("application/json"):
        body = await request.json()
    else:
        body = await request.form()
    return ran(request.headers.get("x-case"), "both", body.get("session_id"))


@app.post("/either")
async def either(request: Request):
    try:
        body = await request.json()
    except ValueError:
        body = await request.form()
    return ran(request.headers.get("x-case"), "either", body.get("session_id"))


@app.post("/form")
async def form(session_id: Annotated[str | None, Form()] = None, x_case: Case = None):
    return ran(x_case, "form", session_id)


@app.get("/query")
async def query(session_id: str | None = None, x_case: Case = None):
    return ran(x_case, "query", session_id)


@app.put("/put")
async def put(session_id: str | None = None, x_case: Case = None):
    return ran(x_case, "put", session_id)


@app.post("/header")
async def header(
    turn: dict,
    x_session_id: Annotated[str | None, Header()] = None,
    x_user_id: Annotated[str | None, Header()] = None,
    x_forwarded_for: Annotated[str | None, Header()] = None,
    x_case: Case = None,
):
    return ran(x_case, "header", x_session_id, user=x_user_id, forwarded=x_forwarded_for)


@app.post("/cookie")
async def cookie(session_id: Annotated[str | None, Cookie()] = None, x_case: Case = None):
    return ran(x_case, "cookie", session_id)


@app.get("/thread/{id}")
@app.post("/thread/{id}")
async def thread(id: str, x_case: Case = None):
    return ran(x_case, "thread", id)


@app.post("/path/{id}/runs")
async def runs(id: str, x_case: Case = None):
    return ran(x_case, "runs", id)


@app.post("/uuid")
async def uuid(turn: UuidTurn, x_case: Case = None):
    return ran(x_case, "uuid", turn.session_id)


@app.get("/uuid/{id}")
async def uuid_path(id: UUID, x_case: Case = None):
    return ran(x_case, "uuid-path", id)


@app.get("/uuidq")
async def uuid_query(session_id: UUID, x_case: Case = None):
    return ran(x_case, "uuid-query", session_id)


@app.post("/int")
async def integer(turn: IntTurn, x_case: Case = None):
    return ran(x_case, "int", turn.session_id)


@app.get("/int/{id}")
async def int_path(id: int, x_case: Case = None):
    return ran(x_case, "int-path", id)


@app.get("/intq")
async def int_query(session_id: int, x_case: Case = None):
    return ran(x_case, "int-query", session_id)


@app.post("/mode/{id}")
async def mode(id: str, x_mode: Annotated[str | None, Header()] = None, x_case: Case = None):
    return ran(x_case, "mode", id) if x_mode == "chat" else None


@app.post("/halt/{id}")
async def halt(id: str, x_mode: Annotated[str | None, Header()] = None, x_case: Case = None):
    return ran(x_case, "halt", id) if x_mode != "stop" else None


@app.post("/kind/{id}")
async def kind(id: str, request: Request):
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    return ran(request.headers.get("x-case"), "kind", id) if kind == "application/json" else None


class Action(Turn):
    action: str | None = None


@app.post("/action")
async def action(turn: Action, x_case: Case = None):
    return ran(x_case, "action", turn.session_id) if turn.action == "chat" else None


@app.post("/command")
async def command(request: Request):
    body = await request.json()
    return ran(request.headers.get("x-case"), "command", body.get("session_id")) if body.get("action") != "stop" else None


@app.post("/submit")
async def submit(action: Annotated[str | None, Form()] = None, session_id: Annotated[str | None, Form()] = None, x_case: Case = None):
    return ran(x_case, "submit", session_id) if action == "chat" else None


@app.get("/lower")
async def lower(session_id: str = "", x_case: Case = None):
    return ran(x_case, "lower", session_id.lower())

"""aiohttp: JSON where it is declared, or else the form."""

import sys
from uuid import UUID

from aiohttp import web
from record import ran

routes = web.RouteTableDef()


def turn(request, route, session, **more):
    return web.json_response(ran(request.headers.get("x-case"), route, session, **more))


def checked(kind, text):
    try:
        return kind(text)
    except (TypeError, ValueError, AttributeError):
        raise web.HTTPBadRequest from None


async def body(request):
    try:
        return await request.json()
    except (ValueError, LookupError):
        raise web.HTTPBadRequest from None


@routes.post("/chat")
@routes.post("/both")
async def chat(request):
    data = await body(request) if request.content_type == "application/json" else await request.post()
    return turn(request, request.path.strip("/"), data.get("session_id"))


@routes.post("/json")
async def json(request):
    return turn(request, "json", (await body(request)).get("session_id"))


@routes.post("/either")
async def either(request):
    try:
        data = await request.json()
    except (ValueError, LookupError):
        data = await request.post()
    return turn(request, "either", data.get("session_id"))


@routes.post("/form")
async def form(request):
    return turn(request, "form", (await request.post()).get("session_id"))


@routes.get("/query")
async def query(request):
    return turn(request, "query", request.query.get("session_id"))


@routes.put("/put")
async def put(request):
    return turn(request, "put", request.query.get("session_id"))


@routes.post("/header")
async def header(request):
    await request.read()
    headers = request.headers
    return turn(request, "header", headers.get("x-session-id"), user=headers.get("x-user-id"), forwarded=headers.get("x-forwarded-for"))


@routes.post("/cookie")
async def cookie(request):
    return turn(request, "cookie", request.cookies.get("session_id"))


@routes.route("*", "/thread/{id}")
async def thread(request):
    return turn(request, "thread", request.match_info["id"])


@routes.post("/path/{id}/runs")
async def runs(request):
    return turn(request, "runs", request.match_info["id"])


@routes.post("/mode/{id}")
async def mode(request):
    return turn(request, "mode", request.match_info["id"]) if request.headers.get("x-mode") == "chat" else web.Response()


@routes.post("/halt/{id}")
async def halt(request):
    return turn(request, "halt", request.match_info["id"]) if request.headers.get("x-mode") != "stop" else web.Response()


@routes.post("/kind/{id}")
async def kind(request):
    return turn(request, "kind", request.match_info["id"]) if request.content_type == "application/json" else web.Response()


@routes.post("/action")
async def action(request):
    data = await body(request) if request.content_type == "application/json" else await request.post()
    return turn(request, "action", data.get("session_id")) if data.get("action") == "chat" else web.Response()


@routes.post("/command")
async def command(request):
    data = await body(request)
    return turn(request, "command", data.get("session_id")) if data.get("action") != "stop" else web.Response()


@routes.post("/submit")
async def submit(request):
    data = await request.post()
    return turn(request, "submit", data.get("session_id")) if data.get("action") == "chat" else web.Response()


@routes.post("/uuid")
async def uuid(request):
    return turn(request, "uuid", checked(UUID, (await body(request)).get("session_id")))


@routes.get("/uuid/{id}")
async def uuid_path(request):
    return turn(request, "uuid-path", checked(UUID, request.match_info["id"]))


@routes.get("/uuidq")
async def uuid_query(request):
    return turn(request, "uuid-query", checked(UUID, request.query.get("session_id")))


@routes.post("/int")
async def integer(request):
    return turn(request, "int", checked(int, (await body(request)).get("session_id")))


@routes.get("/int/{id}")
async def int_path(request):
    return turn(request, "int-path", checked(int, request.match_info["id"]))


@routes.get("/intq")
async def int_query(request):
    return turn(request, "int-query", checked(int, request.query.get("session_id")))


@routes.get("/lower")
async def lower(request):
    return turn(request, "lower", request.query.get("session_id", "").lower())


app = web.Application()
app.add_routes(routes)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)

"""Django with REST framework's parsers, as its guide has them: JSON, form and multipart."""

import json as stdlib_json
import logging
import uuid

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from record import ran

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="django_app",
    SECRET_KEY="not secret",
    APPEND_SLASH=False,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []},
    LOGGING_CONFIG=None,
)
django.setup()
logging.disable(logging.CRITICAL)

from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import serializers  # noqa: E402
from rest_framework.decorators import api_view, parser_classes  # noqa: E402
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser  # noqa: E402


class UuidTurn(serializers.Serializer):
    session_id = serializers.UUIDField()


class IntTurn(serializers.Serializer):
    session_id = serializers.IntegerField()


def turn(request, route, session, **more):
    return JsonResponse(ran(request.headers.get("x-case"), route, session, **more))


def reads(*methods, parsers=(JSONParser,)):
    return lambda view: api_view(methods)(parser_classes(parsers)(view))


@reads("POST", parsers=[JSONParser, FormParser, MultiPartParser])
def chat(request):
    return turn(request, request.path.strip("/"), request.data.get("session_id"))


@reads("POST")
def json(request):
    return turn(request, "json", request.data.get("session_id"))


def either(request):
    try:
        data = stdlib_json.loads(request.body)
    except ValueError:
        data = request.POST
    return turn(request, "either", data.get("session_id"))


def form(request):
    if request.method == "POST":
        return turn(request, "form", request.POST.get("session_id"))


def query(request):
    if request.method in ("GET", "HEAD"):
        return turn(request, "query", request.GET.get("session_id"))


@reads("PUT")
def put(request):
    return turn(request, "put", request.query_params.get("session_id"))


@reads("POST")
def header(request):
    headers = request.headers
    return turn(request, "header", headers.get("x-session-id"), user=headers.get("x-user-id"), forwarded=headers.get("x-forwarded-for"))


def cookie(request):
    return turn(request, "cookie", request.COOKIES.get("session_id"))


def thread(request, id):
    return turn(request, "thread", id)


def runs(request, id):
    return turn(request, "runs", id)


def checked(serializer, data):
    serializer = serializer(data=data)
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data["session_id"]


@reads("POST")
def uuid_body(request):
    return turn(request, "uuid", checked(UuidTurn, request.data))


def uuid_path(request, id: uuid.UUID):
    return turn(request, "uuid-path", id)


@reads("GET")
def uuid_query(request):
    return turn(request, "uuid-query", checked(UuidTurn, request.query_params))


@reads("POST")
def int_body(request):
    return turn(request, "int", checked(IntTurn, request.data))


def int_path(request, id: int):
    return turn(request, "int-path", id)


@reads("GET")
def int_query(request):
    return turn(request, "int-query", checked(IntTurn, request.query_params))


def lower(request):
    return turn(request, "lower", request.GET.get("session_id", "").lower())


def mode(request, id):
    return turn(request, "mode", id) if request.headers.get("x-mode") == "chat" else HttpResponse()


def halt(request, id):
    return turn(request, "halt", id) if request.headers.get("x-mode") != "stop" else HttpResponse()


def kind(request, id):
    return turn(request, "kind", id) if request.content_type == "application/json" else HttpResponse()


@reads("POST", parsers=[JSONParser, FormParser, MultiPartParser])
def action(request):
    return turn(request, "action", request.data.get("session_id")) if request.data.get("action") == "chat" else HttpResponse()


@reads("POST")
def command(request):
    return turn(request, "command", request.data.get("session_id")) if request.data.get("action") != "stop" else HttpResponse()


def submit(request):
    return turn(request, "submit", request.POST.get("session_id")) if request.POST.get("action") == "chat" else HttpResponse()


urlpatterns = [
    path("chat", chat),
    path("both", chat),
    path("either", either),
    path("mode/<id>", mode),
    path("halt/<id>", halt),
    path("kind/<id>", kind),
    path("action", action),
    path("command", command),
    path("submit", submit),
    path("json", json),
    path("form", form),
    path("query", query),
    path("put", put),
    path("header", header),
    path("cookie", cookie),
    path("thread/<id>", thread),
    path("path/<id>/runs", runs),
    path("uuid", uuid_body),
    path("uuid/<uuid:id>", uuid_path),
    path("uuidq", uuid_query),
    path("int", int_body),
    path("int/<int:id>", int_path),
    path("intq", int_query),
    path("lower", lower),
]
application = get_wsgi_application()

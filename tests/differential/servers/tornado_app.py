"""Tornado: arguments by its own methods, JSON by the standard library."""

import asyncio
import json
import logging
import sys
from uuid import UUID

from record import ran
from tornado.web import Application, HTTPError, RequestHandler

logging.disable(logging.CRITICAL)


class Turn(RequestHandler):
    def turn(self, route, session, **more):
        self.write(ran(self.request.headers.get("x-case"), route, session, **more))

    def member(self, name="session_id"):
        try:
            return json.loads(self.request.body).get(name)
        except (ValueError, AttributeError):
            raise HTTPError(400) from None

    def checked(self, kind, text):
        try:
            return kind(text)
        except (TypeError, ValueError, AttributeError):
            raise HTTPError(400) from None


class Chat(Turn):
    def post(self):
        if self.request.headers.get("content-type", "").startswith("application/json"):
            session = self.member()
        else:
            session = self.get_body_argument("session_id", None)
        self.turn(self.request.path.strip("/"), session)


class Json(Turn):
    def post(self):
        self.turn("json", self.member())


class Either(Turn):
    def post(self):
        try:
            session = json.loads(self.request.body).get("session_id")
        except ValueError:
            session = self.get_body_argument("session_id", None)
        self.turn("either", session)


class Form(Turn):
    def post(self):
        self.turn("form", self.get_body_argument("session_id", None))


class Query(Turn):
    def get(self):
        self.turn("query", self.get_query_argument("session_id", None))


class Put(Turn):
    def put(self):
        self.turn("put", self.get_query_argument("session_id", None))


class Header(Turn):
    def post(self):
        headers = self.request.headers
        self.turn("header", headers.get("x-session-id"), user=headers.get("x-user-id"), forwarded=headers.get("x-forwarded-for"))


class Cookie(Turn):
    def post(self):
        self.turn("cookie", self.get_cookie("session_id"))


class Thread(Turn):
    def get(self, id):
        self.turn("thread", id)

    post = get


class Runs(Turn):
    def post(self, id):
        self.turn("runs", id)


class Mode(Turn):
    def post(self, id):
        if self.request.headers.get("x-mode") == "chat":
            self.turn("mode", id)


class Halt(Turn):
    def post(self, id):
        if self.request.headers.get("x-mode") != "stop":
            self.turn("halt", id)


class Kind(Turn):
    def post(self, id):
        if self.request.headers.get("content-type", "").split(";")[0].strip() == "application/json":
            self.turn("kind", id)


class Action(Turn):
    def post(self):
        if self.member("action") == "chat":
            self.turn("action", self.member())


class Command(Turn):
    def post(self):
        if self.member("action") != "stop":
            self.turn("command", self.member())


class Submit(Turn):
    def post(self):
        if self.get_body_argument("action", None) == "chat":
            self.turn("submit", self.get_body_argument("session_id", None))


class Uuid(Turn):
    def post(self):
        self.turn("uuid", self.checked(UUID, self.member()))


class UuidPath(Turn):
    def get(self, id):
        self.turn("uuid-path", self.checked(UUID, id))


class UuidQuery(Turn):
    def get(self):
        self.turn("uuid-query", self.checked(UUID, self.get_query_argument("session_id", None)))


class Int(Turn):
    def post(self):
        self.turn("int", self.checked(int, self.member()))


class IntPath(Turn):
    def get(self, id):
        self.turn("int-path", self.checked(int, id))


class IntQuery(Turn):
    def get(self):
        self.turn("int-query", self.checked(int, self.get_query_argument("session_id", None)))


class Lower(Turn):
    def get(self):
        self.turn("lower", self.get_query_argument("session_id", "").lower())


async def main():
    handlers = [("/chat", Chat), ("/both", Chat), ("/json", Json), ("/form", Form), ("/query", Query), ("/put", Put)]
    handlers += [("/header", Header), ("/cookie", Cookie), (r"/thread/([^/]+)", Thread), (r"/path/([^/]+)/runs", Runs)]
    handlers += [("/either", Either), (r"/mode/([^/]+)", Mode), (r"/halt/([^/]+)", Halt), (r"/kind/([^/]+)", Kind)]
    handlers += [("/action", Action), ("/command", Command), ("/submit", Submit)]
    handlers += [("/uuid", Uuid), (r"/uuid/([^/]+)", UuidPath), ("/uuidq", UuidQuery)]
    handlers += [("/int", Int), (r"/int/([^/]+)", IntPath), ("/intq", IntQuery), ("/lower", Lower)]
    Application(handlers).listen(int(sys.argv[1]), address="127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())

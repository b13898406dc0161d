"""The servers that people run, each with an application of its kind in `servers/`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
APPS = HERE / "servers"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target"))
WORK = TARGET / "differential"
BIN = WORK / "venv" / "bin"
MODULES = WORK / "node" / "node_modules"


@dataclass(frozen=True)
class Server:
    """`@PORT@` in the command is where it listens."""

    name: str
    command: tuple[str, ...]
    # How the proxy reaches it.
    scheme: str = "http"
    # The routes whose session it reads as it is spelt, percent-encoded or not.
    undecoded: frozenset[str] = frozenset()
    # The routes whose session it reads with spaces for `+`, though that is no form.
    plus: frozenset[str] = frozenset()
    # Another server has the same application and gets the whole table; this one gets what a server decides itself.
    sibling: bool = False

    def started_by(self, port: int) -> list[str]:
        return [word.replace("@PORT@", str(port)) for word in self.command]


def python(name: str, *command: str, **more: object) -> Server:
    """One whose framework gives cookies as they are spelt."""
    undecoded = frozenset({"cookie"} | more.pop("undecoded", set()))
    return Server(name, (str(BIN / command[0]), *command[1:]), undecoded=undecoded, **more)


def node(name: str, app: str, *words: str, **more: object) -> Server:
    return Server(name, ("node", str(APPS / app), *words, "@PORT@"), **more)


def uvicorn(http: str, **more: object) -> Server:
    words = ("uvicorn", "--app-dir", str(APPS), "--host", "127.0.0.1", "--port", "@PORT@", "--log-level", "critical")
    return python(f"uvicorn-{http}", *words, "--no-access-log", "--http", http, "fastapi_app:app", **more)


def gunicorn(name: str, app: str, **more: object) -> Server:
    words = ("gunicorn", "--chdir", str(APPS), "--bind", "127.0.0.1:@PORT@", "--log-level", "critical", "--threads", "4")
    return python(name, *words, app, **more)


def hypercorn(name: str, scheme: str) -> Server:
    words = ("hypercorn", "--bind", "127.0.0.1:@PORT@", "--log-level", "critical", "fastapi_app:app")
    return python(name, *words, scheme=scheme, sibling=True)


def rack(name: str, *command: str, **more: object) -> Server:
    return Server(name, (*command, str(APPS / "config.ru")), plus=frozenset({"cookie"}), **more)


SERVERS = [
    uvicorn("httptools"),
    uvicorn("h11", sibling=True),
    hypercorn("hypercorn", "http"),
    hypercorn("hypercorn-h2c", "h2c"),
    python("flask", "python", str(APPS / "flask_app.py"), "@PORT@"),
    python("waitress", "waitress-serve", "--listen=127.0.0.1:@PORT@", "flask_app:app", sibling=True),
    gunicorn("gunicorn", "flask_app:app", sibling=True),
    gunicorn("django", "django_app:application"),
    python("aiohttp", "python", str(APPS / "aiohttp_app.py"), "@PORT@"),
    python("tornado", "python", str(APPS / "tornado_app.py"), "@PORT@"),
    python("sanic", "python", str(APPS / "sanic_app.py"), "@PORT@", undecoded={"thread", "runs"}),
    python("bottle", "python", str(APPS / "bottle_app.py"), "@PORT@"),
    node("express4", "express.js", "express4"),
    node("express5", "express.js", "express5"),
    node("fastify", "fastify.js"),
    node("koa", "koa.js", undecoded=frozenset({"cookie"}), plus=frozenset({"thread", "runs"})),
    node("hono", "hono.js"),
    Server("php", ("php", "-S", "127.0.0.1:@PORT@", str(APPS / "index.php"))),
    rack("puma", "puma", "--quiet", "--threads", "16:16", "--bind", "tcp://127.0.0.1:@PORT@"),
    rack("webrick", "rackup", "--quiet", "--server", "webrick", "--env", "none", "--host", "127.0.0.1", "--port", "@PORT@", sibling=True),
]

# For the applications: the recorder and the packages.
ENV = {
    "PYTHONPATH": str(APPS),
    "PYTHONDONTWRITEBYTECODE": "1",
    "NODE_PATH": str(MODULES),
    "NODE_ENV": "production",
}

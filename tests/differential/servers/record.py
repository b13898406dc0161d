"""Where a server notes which session a turn has read, past the proxy."""

from __future__ import annotations

import json
import os

RECORDS = os.open(os.environ["RECORDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def ran(case: str | None, route: str, session: object, **more: str | None) -> dict:
    """Notes a turn, and gives its answer. What is falsy is no session, as in `or`."""
    session = str(session) if session else None
    turn = {"case": case, "route": route, "session": session, **more}
    os.write(RECORDS, json.dumps(turn).encode() + b"\n")
    return {"ran": True, "route": route}

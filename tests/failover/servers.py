"""The Redis servers of a case: a master with replicas and Sentinels, or a cluster."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import process
from network import Network
from resp import RespError, call

SLOTS = 16384
# For servers to find one another.
READY_LIMIT = 60.0


def slot_of(key: str) -> int:
    """The slot of a key without braces."""
    return binascii.crc_hqx(key.encode(), 0) % SLOTS


async def until(condition: Callable[[], Awaitable[object]], what: str, limit: float = READY_LIMIT) -> None:
    """Waits for a condition. An error of Redis counts as not yet."""
    seen: object = None
    try:
        async with asyncio.timeout(limit):
            while True:
                try:
                    if await condition():
                        return
                except (OSError, RespError, asyncio.IncompleteReadError) as error:
                    seen = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise SystemExit(f"waited {limit:.0f} s in vain: {what} {seen or ''}") from None


class Server:
    """One redis-server, at a loopback address of its own."""

    def __init__(self, network: Network, folder: Path, number: int) -> None:
        self.host = f"127.0.1.{number}"
        self.folder = folder / f"server-{number}"
        self.folder.mkdir()
        self.log = self.folder / "log"
        self._network = network
        self._process: asyncio.subprocess.Process | None = None
        self.port = self.front = self.bus_front = 0

    async def start(self, options: list[str], *, is_node: bool = False) -> None:
        self.port = process.free_port(self.host, 10_000)
        self.front = await self._network.front(self.host, self.port)
        if is_node:
            self.bus_front = await self._network.front(self.host, self.port + 10_000)
            options = [
                *("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(self.front)),
                *("--cluster-announce-bus-port", str(self.bus_front), *options),
            ]
        else:
            options = ["--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(self.front), *options]
        command = [
            *("redis-server", "--port", str(self.port), "--bind", self.host, "--bind-source-addr", self.host),
            *("--protected-mode", "no", "--save", "", "--dir", str(self.folder), *options),
        ]
        self._process = await process.started(command, self.host, self.port, self.log)

    async def call(self, *words: object) -> Any:
        return await call(self.host, self.port, *words)

    async def kill(self) -> None:
        if self._process:
            await process.killed(self._process)

    def cut(self) -> None:
        self._network.cut(self.host)

    def heal(self) -> None:
        self._network.heal(self.host)

    async def info(self, section: str) -> dict[str, str]:
        lines = (await self.call("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def info_of_cluster(self) -> dict[str, str]:
        return dict(line.split(":", 1) for line in (await self.call("CLUSTER", "INFO")).splitlines() if ":" in line)

    async def follows(self) -> bool:
        """Whether it is a replica with all that its master has."""
        info = await self.info("replication")
        return info["role"] == "slave" and info["master_link_status"] == "up"


class Servers:
    """What a case starts. Each replica of the proxy has one of the `urls`, and `first` is the master of the first sessions."""

    urls: list[str]
    first: Server

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def masters(self) -> list[Server]:
        """The servers that have keys now."""
        raise NotImplementedError

    def sessions(self) -> list[str]:
        """Six sessions, the first two of which are at `first`."""
        raise NotImplementedError


class SentinelServers(Servers):
    """1 master, 2 replicas, 3 Sentinels."""

    MASTER = "main"
    # The replica of the proxy with the first URL, for the network.
    PROXY = "proxy-0"

    def __init__(self, network: Network, folder: Path, down_after: float, options: list[str]) -> None:
        """`options` are those of the master and the replicas."""
        self._servers = [Server(network, folder, number) for number in (1, 2, 3)]
        self._network, self._folder, self._down_after, self._options = network, folder, down_after, options
        self._sentinels: list[tuple[str, int]] = []
        self._processes: list[asyncio.subprocess.Process] = []
        self.first = self._servers[0]

    async def start(self) -> None:
        await self.first.start(self._options)
        for replica in self._servers[1:]:
            await replica.start(["--replicaof", "127.0.0.1", str(self.first.front), *self._options])
        for replica in self._servers[1:]:
            await until(replica.follows, "the replicas have the data of the master")
        for number in (11, 12, 13):
            host = f"127.0.1.{number}"
            port = process.free_port(host)
            folder = self._folder / f"sentinel-{number}"
            folder.mkdir()
            file = folder / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind {host}\nbind-source-addr {host}\ndir {folder}\nprotected-mode no\n"
                f"sentinel announce-ip {host}\nsentinel monitor {self.MASTER} 127.0.0.1 {self.first.front} 2\n"
                f"sentinel down-after-milliseconds {self.MASTER} {self._down_after * 1000:.0f}\n"
                f"sentinel failover-timeout {self.MASTER} 5000\n"
            )
            self._sentinels.append((host, port))
            self._processes.append(await process.started(("redis-server", str(file), "--sentinel"), host, port, folder / "log"))
        for sentinel in self._sentinels:
            await until(lambda: self._knows_all(sentinel), "the Sentinels know all servers")
        fronts = [("127.0.0.1", await self._network.front(*sentinel, self.PROXY)) for sentinel in self._sentinels]
        hosts = [",".join(f"{host}:{port}" for host, port in some) for some in (fronts, self._sentinels)]
        self.urls = [f"redis-sentinel://{some}/{self.MASTER}/0" for some in hosts]

    def split(self) -> None:
        """Cuts off the master together with a replica of the proxy, which hears of no other master."""
        self.first.cut()
        self._network.cut(self.PROXY)

    def join(self) -> None:
        self.first.heal()
        self._network.heal(self.PROXY)

    async def _master(self, sentinel: tuple[str, int]) -> dict[str, str]:
        words = await call(*sentinel, "SENTINEL", "MASTER", self.MASTER)
        return dict(zip(words[::2], words[1::2], strict=True))

    async def _knows_all(self, sentinel: tuple[str, int]) -> bool:
        master = await self._master(sentinel)
        return (master["num-slaves"], master["num-other-sentinels"], master["flags"]) == ("2", "2", "master")

    async def failover(self) -> None:
        """Has the Sentinels make a replica the master."""
        await call(*self._sentinels[0], "SENTINEL", "FAILOVER", self.MASTER)

    async def masters(self) -> list[Server]:
        port = int((await self._master(self._sentinels[0]))["port"])
        return [server for server in self._servers if server.front == port]

    def sessions(self) -> list[str]:
        return [f"s{number}" for number in range(6)]

    async def stop(self) -> None:
        for sentinel in self._processes:
            await process.killed(sentinel)
        for server in self._servers:
            await server.kill()


class ClusterServers(Servers):
    """3 masters, and a replica of each."""

    def __init__(self, network: Network, folder: Path, node_timeout: float) -> None:
        self._nodes = [Server(network, folder, number) for number in range(1, 7)]
        self._options = ["--cluster-node-timeout", f"{node_timeout * 1000:.0f}"]
        self.first, self._second, self._third, self.replica, _, _ = self._nodes

    async def start(self) -> None:
        for node in self._nodes:
            await node.start(self._options, is_node=True)
        masters, replicas = self._nodes[:3], self._nodes[3:]
        for number, node in enumerate(self._nodes):
            await node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(masters):
            await node.call("CLUSTER", "ADDSLOTS", *self._slots(number))
        for node in self._nodes[1:]:
            await self.first.call("CLUSTER", "MEET", "127.0.0.1", node.front, node.bus_front)
        for node in self._nodes:
            await until(lambda: self._knows_all(node), "the nodes know one another")
        for replica, master in zip(replicas, masters, strict=True):
            await replica.call("CLUSTER", "REPLICATE", await master.call("CLUSTER", "MYID"))
        for replica in replicas:
            await until(replica.follows, "the replicas have the data of their masters")
        for node in self._nodes:
            await until(lambda: self._is_ok(node), "the cluster is ok")
        self.urls = ["redis-cluster://" + ",".join(f"127.0.0.1:{node.front}" for node in masters)]

    @staticmethod
    def _slots(number: int) -> range:
        """The slots of the master with this index."""
        return range(SLOTS * number // 3, SLOTS * (number + 1) // 3)

    @staticmethod
    async def _lines(node: Server) -> list[list[str]]:
        return [line.split(" ") for line in (await node.call("CLUSTER", "NODES")).splitlines()]

    async def _knows_all(self, node: Server) -> bool:
        lines = await self._lines(node)
        return len(lines) == 6 and all("handshake" not in line[2] and line[7] == "connected" for line in lines)

    async def _is_ok(self, node: Server) -> bool:
        lines = await self._lines(node)
        return (await node.info_of_cluster())["cluster_state"] == "ok" and sum("slave" in line[2] for line in lines) == 3

    async def failover(self) -> None:
        """Has the replica of the first master take its place, together with it."""
        await self.replica.call("CLUSTER", "FAILOVER")

    async def reshard(self, keys: list[str]) -> None:
        """Moves the slots of these keys from the first master to the second; each takes half a second, which is long."""
        source, target = await self.first.call("CLUSTER", "MYID"), await self._second.call("CLUSTER", "MYID")
        for slot in {slot_of(key) for key in keys}:
            await self._second.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source)
            await self.first.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target)
            # Turns begin and end in the meantime, so their keys are at both nodes.
            for _ in range(10):
                await self._migrate(slot, 1)
                await asyncio.sleep(0.05)
            while await self._migrate(slot, 100):
                pass
            for node in (self._second, self.first, self._third):
                await node.call("CLUSTER", "SETSLOT", slot, "NODE", target)

    async def _migrate(self, slot: int, count: int) -> bool:
        """Moves some keys of a slot; gives whether there were any."""
        keys = await self.first.call("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            await self.first.call("MIGRATE", "127.0.0.1", self._second.front, "", 0, 2000, "KEYS", *keys)
        return bool(keys)

    async def masters(self) -> list[Server]:
        for node in self._nodes:
            try:
                if (await node.info_of_cluster())["cluster_state"] == "ok":
                    ports = {int(line[1].split("@")[0].split(":")[1]) for line in await self._lines(node) if "master" in line[2] and len(line) > 8}
                    return [node for node in self._nodes if node.front in ports]
            except OSError:
                pass
        raise SystemExit("no node says that the cluster is ok")

    def sessions(self) -> list[str]:
        found: list[list[str]] = [[], [], []]
        for number in range(1000):
            name = f"s{number}"
            at = next(it for it in range(3) if slot_of(key_of(name)) in self._slots(it))
            if len(found[at]) < 2:
                found[at].append(name)
        return [name for names in found for name in names]

    async def stop(self) -> None:
        for node in self._nodes:
            await node.kill()


def key_of(session: str) -> str:
    """The key of a session's lock."""
    return f"lock:session:u:{session}"

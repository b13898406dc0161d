"""What it costs to keep answers with `replay`, on loopback: CPU and memory of the proxy and of Redis.

    python3 benches/kept_answers.py target/release/seriatim                   # about four minutes
    python3 benches/kept_answers.py target/release/seriatim --streams 20 --many 50 --events 61

Each stream is a turn with a session of its own, to which the backend sends events of 100 bytes at a fixed rate. In each
case, the script waits until all clients and all viewers have the first event. Then the backend sends the rest, and the
script counts until everybody has all of it. The streams stay open until then, so the memory is that of turns that run.

The script measures CPU time, so other work on the machine changes little. If the events per second are fewer than asked
for, the machine was too busy, and Redis got fewer commands of larger batches.

It takes Python and `redis-server` alone. Nothing is asserted: it prints.
"""

import argparse
import asyncio
import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time

CONFIG = """
listen = "127.0.0.1:{proxy}"
upstream = "http://127.0.0.1:{backend}"

[admin]
listen = "127.0.0.1:{admin}"

[store]
url = "{store}"

[log]
level = "error"

[limits]
max_connections = 20000

[[routes]]
name = "chat"
methods = ["POST"]
path = "/chat"
session_id = ["{{header:x-session}}"]
replay = {replay}
"""
ATTACH = """
[[routes]]
name = "resume"
methods = ["GET"]
path = "/chat"
session_id = ["{header:x-session}"]
attach = true
"""
TICKS = os.sysconf("SC_CLK_TCK")
MARK = b"~"  # once in each event, and nowhere else
EVENT = b"data: %s%s\n\n" % (b"x" * 91, MARK)
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Backend(asyncio.Protocol):
    """A connection to the backend: answers each request with one event at once, and never ends the response."""

    def __init__(self, streams):
        self.streams, self.request = streams, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.request += data
        if self.request.endswith(b"\r\n\r\n"):
            self.request = b""
            self.transport.write(HEAD + CHUNK)
            self.streams.append(self.transport)


class Reader:
    """A client or a viewer, and how many events it has."""

    def __init__(self, port, request):
        self.events, self.socket = 0, socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(request)
        self.socket.setblocking(False)

    def read(self):
        """Counts what has come."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := self.socket.recv(65536):
                self.events += data.count(MARK)


class Case:
    """What is measured: a store, whether it keeps answers, and how many viewers on which replica read each of them."""

    def __init__(self, store, streams, replay=True, viewers=0, other=False):
        self.store, self.streams, self.replay, self.viewers, self.other = store, streams, replay, viewers, other

    def __str__(self):
        where = f"{self.viewers} on {'the other' if self.other else 'the same'} replica" if self.viewers else "0"
        return f"{self.store} | {self.streams:,} | {'on' if self.replay else 'off'} | {where}"


def cpu(pid):
    """The CPU time of a process so far, in seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid):
    """The resident memory of a process, in KiB."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])


async def info(port, section):
    """What Redis says of itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"INFO {section}\r\n".encode())
    length = await reader.readuntil(b"\r\n")
    text = await reader.readexactly(int(length[1:]))
    writer.close()
    return text.decode()


async def redis_numbers(port):
    """Scripts that the proxy has sent, all commands with those in scripts, CPU seconds, and KiB in use."""
    stats = await info(port, "commandstats")
    calls = {name: int(count) for name, count in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}
    used = await info(port, "cpu")
    seconds = sum(float(re.search(rf"used_cpu_{kind}:(\S+)", used)[1]) for kind in ("user", "sys"))
    kept = int(re.search(r"used_memory:(\d+)", await info(port, "memory"))[1]) / 1024
    return calls.get("evalsha", 0) + calls.get("eval", 0), sum(calls.values()), seconds, kept


async def until(condition, what, limit=120):
    """Waits for something.

    Raises a TimeoutError that says what didn't come.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > limit:
            raise TimeoutError(f"not in {limit} s: {what}")
        await asyncio.sleep(0.1)


async def wait_for_port(port):
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            return writer.close()
        await asyncio.sleep(0.05)


async def all_have(readers, events):
    """Waits until all readers have so many events. Reads seldom: this leaves more of the machine to the proxy."""

    def have_all():
        for reader in readers:
            reader.read()
        return all(reader.events >= events for reader in readers)

    await until(have_all, f"{events} events for all")


async def connect(port, method, sessions):
    """A reader for each session, all at their first event. At most 100 of them connect at once."""
    readers = []
    for n in sessions:
        head = f"{method} /chat HTTP/1.1\r\nhost: x\r\nx-session: s{n}\r\naccept: text/event-stream\r\n"
        request = (head + ("content-length: 0\r\n\r\n" if method == "POST" else "\r\n")).encode()
        readers.append(Reader(port, request))
        if len(readers) % 100 == 0:
            await all_have(readers, 1)
    await all_have(readers, 1)
    return readers


async def send(streams, events, rate):
    """Sends the events to all streams, each at its own time, and gives how many were sent per second."""
    slots = min(50, len(streams))
    begun = time.monotonic()
    for tick in range(events * slots):
        late = begun + tick / (rate * slots) - time.monotonic()
        if late > 0:
            await asyncio.sleep(late)
        elif tick % 8 == 0:
            await asyncio.sleep(0)
        for transport in streams[tick % slots :: slots]:
            transport.write(CHUNK)
    return events * len(streams) / (time.monotonic() - begun)


async def measure_at(case, proxies, ports, streams, arguments):
    """Runs the streams, and gives the columns of the numbers."""
    uses_redis, events, rate = case.store == "Redis", arguments.events, arguments.rate
    memory_before = [memory(proxy.pid) for proxy in proxies]
    stored_before = (await redis_numbers(ports["redis"]))[3] if uses_redis else 0
    readers = await connect(ports["proxies"][0], "POST", range(case.streams))
    viewed = [n for n in range(case.streams) for _ in range(case.viewers)]
    readers += await connect(ports["proxies"][int(case.other)], "GET", viewed)
    redis_before = await redis_numbers(ports["redis"]) if uses_redis else (0,) * 4
    before, began = [cpu(proxy.pid) for proxy in proxies], time.monotonic()
    sending = asyncio.create_task(send(streams, events - 1, rate))
    await all_have(readers, events)
    sent_rate = await sending
    took = time.monotonic() - began
    used = [cpu(proxy.pid) - earlier for proxy, earlier in zip(proxies, before)]
    grown = [memory(proxy.pid) - earlier for proxy, earlier in zip(proxies, memory_before)]
    all_events = case.streams * (events - 1)
    columns = [f"{sent_rate:,.0f}"]
    for n in range(2):
        is_there = n < len(proxies)
        columns.append(f"{used[n] / all_events * 1e6:.0f} µs" if is_there else "")
        columns.append(f"{grown[n] / case.streams:.0f} KiB" if is_there else "")
    if uses_redis:
        after = await redis_numbers(ports["redis"])
        sent, executed, seconds = (b - a for a, b in zip(redis_before[:3], after[:3]))
        columns += [f"{sent / took:,.0f}", f"{executed / took:,.0f}", f"{seconds / took * 100:.1f} %"]
        columns.append(f"{(after[3] - stored_before) / case.streams:.1f} KiB")
    else:
        columns += [""] * 4
    for reader in readers:
        reader.socket.close()
    return columns


async def measure(case, arguments):
    ports = {name: free_port() for name in ("backend", "redis")}
    ports["proxies"] = [free_port() for _ in range(1 + (case.store == "Redis"))]
    streams = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Backend(streams), "127.0.0.1", ports["backend"], backlog=4096)
    processes, quiet = [], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = "memory:"
            if case.store == "Redis":
                store = f"redis://127.0.0.1:{ports['redis']}/0"
                command = ["redis-server", "--port", str(ports["redis"]), "--save", ""]
                processes.append(subprocess.Popen(command, cwd=folder, **quiet))
                await wait_for_port(ports["redis"])
            proxies = []
            for n, port in enumerate(ports["proxies"]):
                path = os.path.join(folder, f"config-{n}.toml")
                values = {"proxy": port, "admin": free_port(), "backend": ports["backend"], "store": store}
                with open(path, "w") as file:
                    file.write(CONFIG.format(**values, replay=str(case.replay).lower()))
                    file.write(ATTACH if case.replay else "")
                proxies.append(subprocess.Popen([arguments.program, "--config", path], stderr=sys.stderr))
                processes.append(proxies[-1])
            for port in ports["proxies"]:
                await wait_for_port(port)
            await asyncio.sleep(1)
            columns = await measure_at(case, proxies, ports, streams, arguments)
            print(f"| {case} | {' | '.join(columns)} |", flush=True)
        except TimeoutError as error:
            print(f"| {case} | {error} |", flush=True)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            for transport in streams:
                transport.abort()
            server.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--streams", type=int, default=100, help="streams of the first cases; 0: leaves them out")
    parser.add_argument("--many", type=int, default=1000, help="streams of the last cases; 0: leaves them out")
    parser.add_argument("--events", type=int, default=201, help="events of a stream")
    parser.add_argument("--rate", type=float, default=20, help="events of a stream per second")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    few, many = arguments.streams, arguments.many
    cases = [Case("memory:", few, replay=False)]
    cases += [Case("memory:", few, viewers=viewers) for viewers in (0, 1, 10)]
    cases += [Case("Redis", few, replay=False)]
    cases += [Case("Redis", few, viewers=viewers) for viewers in (0, 1, 10)]
    cases += [Case("Redis", few, viewers=viewers, other=True) for viewers in (1, 10)]
    cases += [Case("Redis", many, replay=False), Case("Redis", many), Case("Redis", many, viewers=1, other=True)]
    cases = [case for case in cases if case.streams]
    print(f"{arguments.events} events of {len(EVENT)} bytes per stream, {arguments.rate:g} per second")
    print()
    titles = ["store", "streams", "`replay`", "viewers of each", "events per second"]
    titles += ["CPU per event", "memory per stream", "other replica: CPU per event", "its memory per stream"]
    titles += ["scripts to Redis per second", "commands per second", "CPU of Redis", "memory of Redis per stream"]
    print(f"| {' | '.join(titles)} |")
    print("|" + " --- |" * len(titles))
    for case in cases:
        await measure(case, arguments)


asyncio.run(main())

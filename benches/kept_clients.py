"""What it costs to keep the clients of waiting turns, on loopback: CPU of the proxy, and commands of Redis.

    python3 benches/kept_clients.py target/release/seriatim                   # about two minutes
    python3 benches/kept_clients.py target/release/seriatim --sessions 10 --waiters 20 --seconds 5

Each session has a turn that runs, and `waiters / sessions` turns that wait. With each value of `keep_alive`, the script waits
until all of them are in the queue, and then counts for some seconds. It prints CPU seconds, so other work on the machine
changes little.

It takes Python and `redis-server` alone. Nothing is asserted: it prints.
"""

import argparse
import asyncio
import contextlib
import os
import re
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
url = "redis://127.0.0.1:{redis}/0"

[log]
level = "error"

[limits]
max_connections = 20000

[lock]
blocking = true
lock_timeout = "10m"
{keep_alive}

[[routes]]
name = "chat"
path = "/chat"
session_id = ["{{header:x-session}}"]
"""
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def backend(reader, writer):
    """Answers each request with one event, and never ends the response."""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        await reader.readuntil(b"\r\n\r\n")
        event = b"data: x\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await reader.read()
    writer.close()


class Client:
    """A turn, and the bytes of its response so far."""

    def __init__(self, session):
        self.session, self.bytes = session, 0

    async def run(self, port):
        reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /chat HTTP/1.1\r\nhost: x\r\nx-session: s{self.session}\r\naccept: text/event-stream\r\n"
        self.writer.write(f"{head}content-length: 0\r\n\r\n".encode())
        while data := await reader.read(65536):
            self.bytes += len(data)


def cpu(pid):
    """The CPU time of a process so far, in seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid):
    """The resident memory of a process, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


async def ask(port, *words):
    """Sends a command to Redis, and gives the text of its reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
    writer.write(b"*%d\r\n%s" % (len(words), parts))
    line = await reader.readuntil(b"\r\n")
    text = line[1:]
    if line[:1] == b"$":
        text = await reader.readexactly(int(line[1:]))
    writer.close()
    return text.decode()


async def redis_numbers(port):
    """How many commands the proxy has sent, how many were executed with those of scripts, and the CPU seconds."""
    stats = await ask(port, "INFO", "commandstats")
    calls = {name: int(count) for name, count in re.findall(r"cmdstat_(\S+?):calls=(\d+)", stats)}
    sent = sum(calls.get(name, 0) for name in ("evalsha", "eval"))
    used = await ask(port, "INFO", "cpu")
    seconds = sum(float(re.search(rf"used_cpu_{kind}:(\S+)", used)[1]) for kind in ("user", "sys"))
    return sent, sum(calls.values()), seconds


async def measure(program, keep_alive, sessions, waiters, seconds):
    ports = {name: free_port() for name in ("proxy", "backend", "admin", "redis")}
    option = f'keep_alive = "{keep_alive}"' if keep_alive else ""
    server = await asyncio.start_server(backend, "127.0.0.1", ports["backend"], backlog=4096)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.toml")
        with open(path, "w") as file:
            file.write(CONFIG.format(**ports, keep_alive=option))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        redis = subprocess.Popen(["redis-server", "--port", str(ports["redis"]), "--save", ""], cwd=folder, **quiet)
        proxy = subprocess.Popen([program, "--config", path], stderr=sys.stderr)
        tasks = []
        try:
            for port in (ports["redis"], ports["proxy"]):
                while True:
                    with contextlib.suppress(OSError):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            holders = [Client(n) for n in range(sessions)]
            tasks += [asyncio.create_task(client.run(ports["proxy"])) for client in holders]
            while not all(client.bytes for client in holders):
                await asyncio.sleep(0.05)
            waiting = [Client(n % sessions) for n in range(waiters)]
            tasks += [asyncio.create_task(client.run(ports["proxy"])) for client in waiting]
            while True:
                keys = [f"{{lock:session:unknown:s{n}}}:1:queue" for n in range(sessions)]
                queued = sum([int(await ask(ports["redis"], "ZCARD", key)) for key in keys])
                if queued == waiters and (not keep_alive or all(client.bytes for client in waiting)):
                    break
                await asyncio.sleep(0.2)
            numbers = await redis_numbers(ports["redis"])
            before, began, received = cpu(proxy.pid), time.monotonic(), sum(client.bytes for client in waiting)
            await asyncio.sleep(seconds)
            used, took = cpu(proxy.pid) - before, time.monotonic() - began
            sent, executed, redis_cpu = (b - a for a, b in zip(numbers, await redis_numbers(ports["redis"])))
            rate = (sum(client.bytes for client in waiting) - received) / took
            print(
                f"{keep_alive or 'none':>10} {used / took:12.4f} {memory(proxy.pid):10.1f} {sent / took:12.1f} "
                f"{executed / took:14.1f} {redis_cpu / took:12.4f} {rate / 1024:10.1f}",
                flush=True,
            )
        finally:
            for task in tasks:
                task.cancel()
            proxy.kill()
            redis.kill()
            proxy.wait()
            redis.wait()
            server.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--waiters", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    print(f"{arguments.waiters} waiters of {arguments.sessions} sessions")
    print("           proxy:                  Redis, per second:                        to clients:")
    print("keep_alive  CPU s per s        MiB      scripts all commands  CPU s per s  KiB per s")
    for keep_alive in ("", "15s", "1s"):
        await measure(
            arguments.program, keep_alive, arguments.sessions, arguments.waiters, arguments.seconds
        )


asyncio.run(main())

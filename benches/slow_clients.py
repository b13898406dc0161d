"""What clients that send slowly cost the others: three attacks on one build of the proxy, on loopback.

    python3 benches/slow_clients.py target/release/seriatim            # all three, about four minutes
    python3 benches/slow_clients.py target/release/seriatim owner      # one of them

| attack | is | what is printed |
| --- | --- | --- |
| `memory` | 31 connections fill `max_buffered`, and send a byte every five seconds | how the turns of others end meanwhile, and the slowest of them |
| `owner` | a stranger asks for a session's lock, and sends its body three bytes a second | how often the session's owner is refused, and until when |
| `space` | 2,000 requests announce 10 MiB and send two bytes, under `ulimit -v` of 4 GiB | the process' size, and whether it lives |

It takes Python alone. Nothing is asserted: it prints.
"""

import asyncio
import contextlib
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

CONFIG = """
listen = "127.0.0.1:{proxy}"
upstream = "http://127.0.0.1:{backend}"

[admin]
listen = "127.0.0.1:{admin}"

[log]
level = "error"

[[routes]]
name = "body"
path = "/body"
session_id = ["{{body:/session}}"]

[[routes]]
name = "head"
path = "/head"
session_id = ["{{header:x-session}}"]
"""
MIB = 1 << 20
LARGEST_BODY = 10 * MIB  # limits.max_body, as it is by default
SPACE = 4096 * MIB


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


async def backend(reader, writer):
    """Reads a body whole, and says OK."""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    writer.close()


class Proxy:
    """A process of this build, before a backend."""

    def __init__(self, binary):
        self.binary = binary
        self.ports = {name: free_port() for name in ("proxy", "backend", "admin")}

    async def __aenter__(self):
        self.backend = await asyncio.start_server(backend, "127.0.0.1", self.ports["backend"])
        with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as config:
            config.write(CONFIG.format(**self.ports))
        bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
        self.process = subprocess.Popen([self.binary, "--config", config.name], preexec_fn=bound)
        while not self.metrics():
            await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.backend.close()

    def metrics(self):
        url = f"http://127.0.0.1:{self.ports['admin']}/metrics"
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url).read().decode()

    async def begin(self, path, length, part):
        """Sends a head, and a part of its body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports["proxy"])
        head = f"POST {path} HTTP/1.1\r\nhost: agent\r\nx-session: s1\r\ncontent-length: {length}\r\n\r\n"
        writer.write(head.encode())
        writer.write(part)
        await writer.drain()
        return reader, writer

    async def call(self, path, body):
        """Sends a request; gives its status, and the seconds that it took."""
        begun = time.monotonic()
        reader, writer = await self.begin(path, len(body), body)
        status = await status_of(reader)
        writer.close()
        return status, time.monotonic() - begun


async def status_of(reader):
    with contextlib.suppress(ConnectionError):
        if line := await reader.readline():
            return int(line.split()[1])
    return "closed"


async def drip(reader, writer, every):
    """Sends a byte again and again; gives how that ended, and after how many seconds."""

    async def send():
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(every)
                writer.write(b" ")
                await writer.drain()

    begun, sending = time.monotonic(), asyncio.create_task(send())
    status = await status_of(reader)
    sending.cancel()
    return status, round(time.monotonic() - begun)


async def memory(proxy):
    # Nearly all of it: none of them is to go beyond it.
    part = b" " * ((256 * MIB - 4096) // 31)
    clients = [await proxy.begin("/body", LARGEST_BODY, part) for _ in range(31)]
    await asyncio.sleep(2)
    print(re.search(r"^seriatim_buffered_bytes \d+", proxy.metrics(), re.MULTILINE)[0])
    dripping = [asyncio.create_task(drip(*client, 5)) for client in clients]
    turns = []
    for session in range(1, 61):
        turns.append(await proxy.call("/body", b'{"session": %d, "text": "%s"}' % (session, b"x" * 400_000)))
        await asyncio.sleep(1)
    statuses = [status for status, _ in turns]
    print("turns of others:", {status: statuses.count(status) for status in set(statuses)})
    print(f"the slowest of them: {max(seconds for _, seconds in turns) * 1000:.0f} ms")
    print("how the 31 ended, and after how many seconds:", sorted(it.result() for it in dripping if it.done()))
    for task in dripping:
        task.cancel()


async def owner(proxy):
    for length in (100, MIB):
        stranger = asyncio.create_task(drip(*await proxy.begin("/head", length, b" "), 0.3))
        await asyncio.sleep(0.5)
        begun, refused = time.monotonic(), 0
        while (await proxy.call("/head", b"{}"))[0] != 200 and time.monotonic() < begun + 90:
            refused += 1
            await asyncio.sleep(0.5)
        seconds = time.monotonic() - begun
        print(f"a body of {length} bytes: the owner is refused {refused} times in {seconds:.1f} s")
        stranger.cancel()
        await asyncio.sleep(0.5)


async def space(proxy):
    clients = []
    for count in range(1, 2001):
        clients.append(await proxy.begin("/body", LARGEST_BODY, b"{ "))
        if count % 500 == 0:
            await asyncio.sleep(0.5)
            with open(f"/proc/{proxy.process.pid}/status") as status:
                print(count, "requests:", re.search(r"VmSize:\s+(.*)", status.read())[1])
    print("one more turn:", (await proxy.call("/body", b'{"session": 1}'))[0])


async def main():
    binary, *names = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for attack in (memory, owner, space):
        if not names or attack.__name__ in names:
            print("==", attack.__name__, flush=True)
            async with Proxy(binary) as proxy:
                try:
                    await attack(proxy)
                except (OSError, AttributeError) as error:
                    print("the process is gone:", repr(error), "exit code", proxy.process.poll())


asyncio.run(main())

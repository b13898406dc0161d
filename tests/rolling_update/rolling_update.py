"""A rolling update under load: replicas of two versions on one Redis, in front of one backend.

Two replicas of the old version are replaced by two of the new one, one after the other: the first one with SIGTERM,
the second one with SIGKILL. Then both are replaced by the old version again, as when an update is taken back. Clients
send turns of a few sessions all the time. The backend counts turns of one session that overlap, and fences that fall.

Usage: rolling_update.py OLD_BINARY [NEW_BINARY]
SERIATIM_ROLLING_SECONDS (5) is the time between two replacements.
"""

import collections
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLIENTS = 20
SESSIONS = 6
LEASE = 10
CONFIG = """
listen   = "127.0.0.1:0"
upstream = "http://127.0.0.1:{backend}"

[admin]
listen = "127.0.0.1:0"

[store]
url            = "redis://127.0.0.1:{redis}/0"
timeout        = "500ms"
crash_recovery = "3s"

[lock]
blocking             = true
lock_timeout         = {lease}
extend_lock_interval = 3

[[routes]]
name       = "chat"
path       = "/chat"
methods    = ["POST"]
session_id = ["{{body:/session_id}}"]
user_id    = ["{{body:/user_id}}", "unknown"]
"""


class Seen:
    """What the backend and the clients have seen."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running = collections.Counter()
        self.fences = collections.Counter()
        self.overlaps = 0
        self.falling = 0
        self.answers = collections.Counter()
        self.longest = 0.0
        self.is_served = False


class Backend(BaseHTTPRequestHandler):
    """Serves a turn for some milliseconds."""

    protocol_version = "HTTP/1.1"
    seen: Seen

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        session = json.loads(body)["session_id"]
        fence = int(self.headers["x-seriatim-fence"])
        with self.seen.lock:
            self.seen.running[session] += 1
            self.seen.overlaps += self.seen.running[session] > 1
            self.seen.falling += fence <= self.seen.fences[session]
            self.seen.fences[session] = max(fence, self.seen.fences[session])
        time.sleep(random.uniform(0.002, 0.02))
        # Before the answer: its end lets the next turn begin.
        with self.seen.lock:
            self.seen.running[session] -= 1
        try:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
        except OSError:
            pass  # The replica was killed.

    def log_message(self, *_):
        pass


class BackendServer(ThreadingHTTPServer):
    """Ignores that connections of a killed replica are reset."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Replica:
    """A running process of a version."""

    def __init__(self, binary, config):
        environment = os.environ | {"SERIATIM__LOG__FORMAT": "json"}
        command = [binary, "--config", config]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            event = json.loads(line)
            if event["message"] == "serving":
                host, port = event["address"].rsplit(":", 1)
                self.address = (host, int(port))
                break
        else:
            raise SystemExit(f"{binary} does not serve")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(timeout=60)


def load(replicas, seen, is_over):
    """Sends turns one after the other, each to a replica that takes it."""
    while not is_over.is_set():
        session = f"s{random.randrange(SESSIONS)}"
        body = json.dumps({"session_id": session, "user_id": "u"})
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection(*random.choice(replicas).address, timeout=60)
            connection.request("POST", "/chat", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            result = f"{answer.status} {answer.headers.get('x-seriatim-error') or ''}".strip()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            result = type(error).__name__
        with seen.lock:
            seen.answers[result] += 1
            seen.longest = max(seen.longest, time.monotonic() - began)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def redis_command(port, *words):
    done = subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def started_redis(folder):
    """A server without persistence, and its port."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server, port
        except OSError:
            time.sleep(0.05)
    raise SystemExit("redis-server does not start")


def left_keys(port):
    """The keys that are left when no turn runs any more; a queue's marks and a killed process's keys expire."""
    end = time.monotonic() + LEASE + 15
    while (keys := redis_command(port, "KEYS", "*")) and time.monotonic() < end:
        time.sleep(0.2)
    return keys.split()


def update(old, new, config, pause, seen):
    """Replaces both replicas, and takes the update back. Ends all processes."""
    replicas = [Replica(old, config), Replica(old, config)]
    is_over = threading.Event()
    clients = [threading.Thread(target=load, args=(replicas, seen, is_over)) for _ in range(CLIENTS)]
    try:
        for client in clients:
            client.start()
        steps = [(0, new, signal.SIGTERM), (1, new, signal.SIGKILL), (0, old, signal.SIGKILL), (1, old, signal.SIGTERM)]
        for place, binary, number in steps:
            time.sleep(pause)
            before = seen.answers["200"]
            ended, replicas[place] = replicas[place], Replica(binary, config)
            ended.end(number)
            print(f"replica {place}: {number.name}, then {binary}; {before} turns so far", flush=True)
        time.sleep(max(pause, LEASE + 2))
        before = seen.answers["200"]
        time.sleep(1)
        seen.is_served = seen.answers["200"] > before
    finally:
        is_over.set()
        for client in clients:
            client.join()
        for replica in replicas:
            replica.end(signal.SIGTERM)


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    old, new = (sys.argv[1:] + ["target/release/seriatim"])[:2]
    pause = float(os.environ.get("SERIATIM_ROLLING_SECONDS", "5"))
    seen = Backend.seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        redis, port = started_redis(folder)
        backend = BackendServer(("127.0.0.1", 0), Backend)
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        try:
            config = pathlib.Path(folder, "config.toml")
            config.write_text(CONFIG.format(backend=backend.server_port, redis=port, lease=LEASE))
            update(old, new, str(config), pause, seen)
            keys = left_keys(port)
        finally:
            redis.terminate()
            redis.wait()
    print("answers:", dict(seen.answers))
    print(f"longest turn: {seen.longest:.1f} s")
    print(f"overlaps: {seen.overlaps}, fences that fell: {seen.falling}, keys left: {keys}")
    if seen.overlaps or seen.falling or keys or not seen.is_served:
        raise SystemExit("FAILED")


main()

"""Runs the image's root as a container would: its own process and mount namespace, a read-only root, the
image's user and command. `image.py ROOT IMAGE.json`; ROOT is changed (mount points are made in it)."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT, IMAGE = Path(sys.argv[1]).resolve(), json.loads(Path(sys.argv[2]).read_text())
TOP = Path(__file__).resolve().parents[2]
LIMIT = 30  # seconds; what takes longer has gone wrong

gate, begun = threading.Event(), threading.Event()


class Agent(BaseHTTPRequestHandler):
    """Begins an answer, and ends it when the gate opens."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"o")
        self.wfile.flush()
        begun.set()
        gate.wait(LIMIT)
        self.wfile.write(b"k")

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def check(holds, rule):
    if not holds:
        raise SystemExit(f"image: {rule}")


def until(holds, rule):
    end = time.monotonic() + LIMIT
    while not holds():
        check(time.monotonic() < end, rule)
        time.sleep(0.05)


def turn(port):
    """Begins a turn; gives the socket, with the answer's head still to be read."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    body = b'{"session_id": "s", "input": "hello"}'
    head = f"POST /chat HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    stream.sendall(head.encode() + body)
    return stream


def read(stream, end):
    """Reads until `end`, or the connection's end."""
    answer = b""
    while end not in answer:
        piece = stream.recv(4096)
        if not piece:
            break
        answer += piece
    return answer


# What the image says of itself.
config = IMAGE["Docker"]["config"]
version = re.search(r'^version = "(.*)"$', (TOP / "Cargo.toml").read_text(), re.M)[1]
check(config["User"] == "65532:65532", f"it runs as 65532: {config['User']}")
check(config["Entrypoint"] == ["/seriatim"], f"the program is the entry point: {config['Entrypoint']}")
check(config["WorkingDir"] == "/etc/seriatim", "files count from where the configuration is")
check(config["StopSignal"] in ("SIGTERM", "15"), "it is stopped by SIGTERM")
check(set(config["ExposedPorts"]) == {"8080/tcp", "9901/tcp"}, "it names its ports")
check(config["Labels"]["org.opencontainers.image.version"] == version, f"its label is the program's version, {version}")
health = config["Healthcheck"]["Test"]
check(health[:2] == ["CMD", "/seriatim"], f"its health is asked through the program: {health}")
files = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())
papers = [f"usr/share/doc/seriatim/{name}" for name in ("LICENSE", "THIRD-PARTY-LICENSES")]
check(files == ["etc/group", "etc/passwd", "seriatim", *papers], f"it holds nothing else: {files}")
licences = (ROOT / papers[1]).read_text()
check(all(f"\n{name} " in licences for name in ("hyper", "tokio", "ring")), "it brings the licences of its crates")
size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
check(size < 20 << 20, f"it is small: {size}")
program = (ROOT / "seriatim").read_bytes()
# The header of a 64-bit ELF file: its type, and where its segments are described, how large and how many.
kind, at, length, count = (*struct.unpack_from("<H", program, 16), *struct.unpack_from("<Q14xHH", program, 32))
segments = {struct.unpack_from("<I", program, at + n * length)[0] for n in range(count)}
check(kind == 3, f"it can be loaded at any address (ET_DYN): {kind}")
check(3 not in segments, "it needs no loader (PT_INTERP): it is linked statically")

# A container's root.
proxy, admin = free_port(), free_port()
agent = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
threading.Thread(target=agent.serve_forever, daemon=True).start()
folder = ROOT.parent / "config"
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
(folder / "config.toml").write_text(
    f"""listen = "127.0.0.1:{proxy}"
upstream = "http://agent.example:{agent.server_port}"
[admin]
listen = "0.0.0.0:{admin}"
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{{body:/session_id}}"]
"""
)
# What every engine mounts into a container. The names of Services are looked up by what is linked in: an
# image without shared libraries has no other way to the agent's.
(ROOT / "proc").mkdir(exist_ok=True)
(ROOT / "dev").mkdir(exist_ok=True)
(ROOT / "etc/hosts").touch()
hosts = ROOT.parent / "hosts"
hosts.write_text("127.0.0.1 localhost agent.example\n")
mounts = """
mount --bind "$0" "$0"
mount --bind -o ro "$1" "$0/etc/seriatim"
mount --bind "$2" "$0/etc/hosts"
mount -t proc proc "$0/proc"
mount -t tmpfs tmpfs "$0/dev"
for device in null zero random urandom; do
  touch "$0/dev/$device"
  mount --bind "/dev/$device" "$0/dev/$device"
done
mount -o remount,bind,ro "$0"
! touch "$0/seriatim-was-here" 2>/dev/null
cd "$0"
shift 2
exec "$@"
"""
# What a container's engine does last. The root has no program that could.
enter = """
import os, sys
root, folder, user, group, *command = sys.argv[1:]
os.chroot(root)
os.chdir(folder)
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
os.execv(command[0], command)
"""
inside = [sys.executable, "-c", enter, str(ROOT), config["WorkingDir"], *config["User"].split(":")]
started = subprocess.Popen(
    ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", mounts, str(ROOT), str(folder), str(hosts)]
    + inside
    + config["Entrypoint"]
    + config["Cmd"],
    stderr=subprocess.PIPE,
    text=True,
)
lines = []
threading.Thread(target=lambda: lines.extend(iter(started.stderr.readline, "")), daemon=True).start()


def first_process():
    """The container's first process, as this machine counts."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    return int(children[0]) if children else None


def execute(*command):
    """Runs a command of the image in the container, as the image's user."""
    return subprocess.run(
        ["nsenter", "--target", str(first_process()), "--mount", "--pid"] + inside + list(command),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


try:
    until(lambda: any("serving" in line for line in lines) or started.poll() is not None, "it begins to serve")
    check(started.poll() is None, "it serves: " + "".join(lines))
    status = Path(f"/proc/{first_process()}/status").read_text()
    check(re.search(r"^Uid:\t65532\t65532", status, re.M), "its process is 65532's")
    check(re.search(r"^NSpid:\t\d+\t1$", status, re.M), "and the container's first")
    for command in (health[1:], ["/seriatim", "health"]):
        asked = execute(*command)
        check(asked.returncode == 0, f"it is well: {command}: {asked.stdout}{asked.stderr}")
    # A turn, and a second one of its session.
    first = turn(proxy)
    check(begun.wait(LIMIT), "a turn reaches the agent")
    second = read(turn(proxy), b"status_code")
    check(second.startswith(b"HTTP/1.1 429 "), f"the session is busy: {second}")
    # As Kubernetes ends a pod: the hook, and then the signal.
    told = execute("/seriatim", "drain", "--after", "10ms")
    check(told.returncode == 0, f"it can be told to drain: {told.stderr}")
    until(lambda: any("draining" in line for line in lines), "it drains")
    asked = execute("/seriatim", "health")
    check(asked.returncode == 1 and "draining" in asked.stderr, f"it isn't ready then: {asked}")
    check(execute(*health[1:]).returncode == 0, "but lives")
    os.kill(first_process(), signal.SIGTERM)
    gate.set()
    answer = read(first, b"\r\n\r\nok")
    check(answer.endswith(b"\r\n\r\nok"), f"the turn that ran ends well: {answer}")
    check(started.wait(LIMIT) == 0, "and the process with 0")
finally:
    started.kill()
print(f"image: {size / (1 << 20):.1f} MiB; serves as 65532 on a read-only root, is healthy, drains and exits with 0")

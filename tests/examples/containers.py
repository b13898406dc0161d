"""Containers as processes, for machines without Docker and without a cluster.

Stands for `docker`, `kind` and `kubectl`, with what the examples' READMEs use of them. It reads compose.yaml or the
manifests, and the Dockerfiles. Each network (of a container, of a pod) has its own ports: every address HOST:PORT that a
container is given becomes a free port on the loopback address. $CONTAINERS is the folder with the state.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from process import free_port

TOP = Path(__file__).resolve().parents[2]
STATE = Path(os.environ["CONTAINERS"])
# For the packages of all images.
VENV = STATE.parent / "venv"
SERIATIM = os.environ["SERIATIM"]
# For a container to be healthy.
LIMIT = 120.0


@dataclass
class Container:
    """A container, with the words of its image and of the file that describes it."""

    name: str
    # Whose network it has.
    network: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    # By the path in the container: a file or a folder of this machine.
    mounts: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    # A command, or the address of a probe: http://HOST:PORT/PATH or tcp:HOST:PORT.
    health: list[str] = field(default_factory=list)
    pid: int = 0

    @property
    def root(self) -> Path:
        """The folder that stands for its file system."""
        return STATE / self.name

    @property
    def log(self) -> Path:
        return STATE / f"{self.name}.log"


class World:
    """All containers, and the port of this machine for each of their ports. It is kept in a file between commands."""

    def __init__(self) -> None:
        STATE.mkdir(parents=True, exist_ok=True)
        self.file = STATE / "state.json"
        saved = json.loads(self.file.read_text()) if self.file.exists() else {"containers": [], "ports": {}, "aliases": {}, "images": {}}
        self.containers = {entry["name"]: Container(**entry) for entry in saved["containers"]}
        # By network and port, as "agent-1:8000".
        self.ports: dict[str, int] = saved["ports"]
        # Names that mean a network.
        self.aliases: dict[str, str] = saved["aliases"]
        # By name: the folder from which an image was built.
        self.images: dict[str, str] = saved["images"]

    def save(self) -> None:
        containers = [asdict(container) for container in self.containers.values()]
        self.file.write_text(json.dumps({"containers": containers, "ports": self.ports, "aliases": self.aliases, "images": self.images}))

    def port(self, network: str, port: str | int) -> int:
        return self.ports.setdefault(f"{network}:{port}", free_port())

    def here(self, text: str, network: str) -> str:
        """A text for a container of this network, with the addresses of this machine."""
        names = "|".join(re.escape(name) for name in (*self.aliases, "127.0.0.1", "0.0.0.0", "localhost"))

        def address(match: re.Match[str]) -> str:
            return f"127.0.0.1:{self.port(self.aliases.get(match[1], network), match[2])}"

        text = re.sub(rf"(?<![\w.-])({names}):(\d+)\b", address, text)
        text = re.sub(r"\blisten (\d+);", lambda match: f"listen 127.0.0.1:{self.port(network, match[1])};", text)
        text = re.sub(r"--host (\S+)", "--host 127.0.0.1", text)
        return re.sub(r"--port (\d+)", lambda match: f"--port {self.port(network, match[1])}", text)

    def spawned(self, container: Container, words: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Runs a command in a container."""
        for inside, outside in container.mounts.items():
            place = container.root / inside.lstrip("/")
            for file in [file for file in (Path(outside), *Path(outside).rglob("*")) if file.is_file()]:
                target = place / file.relative_to(outside)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(self.here(file.read_text(), container.network))
        folder = container.root / container.workdir.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        line = self.here(shlex.join(words), container.network)
        # Paths that the container has.
        for inside in container.mounts:
            line = line.replace(inside, str(container.root / inside.lstrip("/")))
        words = shlex.split(line)
        words[0] = SERIATIM if words[0] == "/seriatim" else words[0]
        environment = {name: self.here(value, container.network) for name, value in container.environment.items()}
        # The admin interface's default is an address, too.
        environment.setdefault("SERIATIM__ADMIN__LISTEN", f"127.0.0.1:{self.port(container.network, 9901)}")
        # The variables of the test itself are not the container's.
        own = {name: value for name, value in os.environ.items() if name != "SERIATIM__ADMIN__LISTEN"}
        own["PATH"] = f"{VENV / 'bin'}:{own['PATH']}"
        return subprocess.Popen(words, cwd=folder, env={**own, **environment}, **options)  # type: ignore[call-overload]

    def start(self, container: Container) -> None:
        with container.log.open("ab") as log:
            process = self.spawned(container, container.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        container.pid = process.pid
        self.containers[container.name] = container

    def wait(self, container: Container) -> None:
        """Waits until a container is healthy."""
        end = time.monotonic() + LIMIT
        while not self.healthy(container):
            if time.monotonic() > end or ended(container.pid):
                sys.exit(f"{container.name} is not healthy:\n{container.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def healthy(self, container: Container) -> bool:
        if not container.health:
            return True
        if container.health[0].startswith("tcp:"):
            host, port = self.here(container.health[0].removeprefix("tcp:"), container.network).split(":")
            with socket.socket() as client:
                return client.connect_ex((host, int(port))) == 0
        if not container.health[0].startswith("http:"):
            return self.spawned(container, container.health, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0
        try:
            with urllib.request.urlopen(self.here(container.health[0], container.network), timeout=5):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        for container in reversed(self.containers.values()):
            try:
                os.kill(container.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            end = time.monotonic() + LIMIT
            while not ended(container.pid):
                if time.monotonic() > end:
                    os.kill(container.pid, signal.SIGKILL)
                time.sleep(0.05)
        self.containers = {}


def ended(pid: int) -> bool:
    try:
        # A child that has ended stays until it is asked for.
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# === images ===


def built(container: Container, context: Path) -> None:
    """What a Dockerfile says of its last stage: packages, files, and the command where none is given."""
    entrypoint: list[str] = []
    command: list[str] = []
    for line in (context / "Dockerfile").read_text().splitlines():
        instruction, _, rest = line.partition(" ")
        words = rest.split()
        if instruction == "FROM":
            entrypoint, command = [], []
        elif instruction == "RUN" and words[:2] == ["pip", "install"]:
            wanted, note = [word for word in words[2:] if not word.startswith("-")], VENV / "installed"
            if not note.exists() or note.read_text() != rest:
                subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
                subprocess.run([VENV / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
                note.write_text(rest)
        elif instruction == "WORKDIR":
            container.workdir = rest
        elif instruction == "COPY" and not words[0].startswith("--") and words[1] == ".":
            (container.root / container.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
            (container.root / container.workdir.lstrip("/") / words[0]).write_text((context / words[0]).read_text())
        elif instruction == "ENTRYPOINT":
            entrypoint = json.loads(rest)
        elif instruction == "CMD":
            command = json.loads(rest)
    container.command = entrypoint + (container.command or command)


def pulled(world: World, container: Container, image: str) -> None:
    """The programs of this machine that stand for images of a registry."""
    name = image.rpartition("/")[2].partition(":")[0]
    if name == "redis":
        container.command = container.command or ["redis-server"]
        container.command += ["--port", "6379", "--bind", "127.0.0.1", "--save", ""]
    elif name == "nginx":
        # Its main file includes those of conf.d.
        main = container.root / "nginx.conf"
        main.parent.mkdir(parents=True, exist_ok=True)
        places = " ".join(f"{what}_temp_path temp-{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        main.write_text(f"pid nginx.pid; events {{}} http {{ access_log off; {places} include etc/nginx/conf.d/*.conf; }}")
        container.command = ["nginx", "-p", str(container.root), "-c", str(main), "-e", "stderr", "-g", "daemon off;"]
    else:
        sys.exit(f"nothing on this machine stands for the image {image}")


# === docker compose ===


def build(words: list[str]) -> None:
    """`docker build --tag NAME FOLDER`: what is installed is installed when a container starts."""
    world = World()
    folder, name = words[-1], words[words.index("--tag") + 1]
    world.images[name] = str(source(folder))
    if not (Path(world.images[name]) / "Dockerfile").exists():
        sys.exit(f"{folder} has no Dockerfile")
    world.save()


def source(path: str) -> Path:
    """What a path of the example means, whose copy is somewhere else."""
    return (Path(os.environ["EXAMPLE"]) / path if path.startswith("..") else Path(path)).resolve()


def compose(words: list[str]) -> None:
    world = World()
    command, names = words[0], [word for word in words[1:] if not word.startswith("-")]
    if command == "up":
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: os.environ.get(match[1]) or match[2], Path("compose.yaml").read_text())
        services = yaml.safe_load(text)["services"]
        world.aliases = {name: name for name in services}
        for name, service in services.items():
            if "build" in service:
                image = service.get("image", name)
                # Docker builds both at once, and one of them fails.
                if image in world.images:
                    sys.exit(f"two services build {image}")
                world.images[image] = str(source(service["build"]))
        while waiting := [name for name in services if name not in world.containers]:
            ready = [name for name in waiting if set(needs(services[name])) <= world.containers.keys()]
            for name in ready:
                service = services[name]
                container = Container(name, service.get("network_mode", "").removeprefix("service:") or name, service.get("command", []))
                container.environment = service.get("environment", {})
                for volume in service.get("volumes", []):
                    outside, inside, _ = volume.split(":")
                    container.mounts[inside] = str(Path(outside).resolve())
                container.health = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
                for port in service.get("ports", []):
                    outside, inside = port.split(":")
                    world.ports[f"{name}:{inside}"] = int(outside)
                if service.get("image", name) in world.images:
                    built(container, Path(world.images[service.get("image", name)]))
                else:
                    pulled(world, container, service["image"])
                for need, condition in needs(service).items():
                    if condition == "service_healthy":
                        world.wait(world.containers[need])
                world.start(container)
            if not ready:
                sys.exit(f"{waiting} wait for each other")
        for container in world.containers.values():
            world.wait(container)
    elif command == "exec":
        container = world.containers[names[0]]
        sys.exit(world.spawned(container, names[1:]).wait())
    elif command == "logs":
        for name in names:
            sys.stdout.write(world.containers[name].log.read_text())
    elif command == "down":
        world.stop()
    else:
        sys.exit(f"docker compose {command} is not known here")
    world.save()


def needs(service: dict) -> dict[str, str]:
    """The services that start before this one, each with the condition."""
    found = {name: entry["condition"] for name, entry in service.get("depends_on", {}).items()}
    if network := service.get("network_mode", "").removeprefix("service:"):
        found.setdefault(network, "service_started")
    return found


# === kubectl ===


def kubectl(words: list[str]) -> None:
    world = World()
    command, options = words[0], words[1:]
    value = lambda option: options[options.index(option) + 1]  # noqa: E731
    files = [options[at + 1] for at, word in enumerate(options) if word == "-f"]
    documents = [document for file in files for document in yaml.safe_load_all(source(file).read_text())]
    if command == "apply":
        workloads = [document for document in documents if document["kind"] == "Deployment"]
        for service in (document for document in documents if document["kind"] == "Service"):
            for workload in workloads:
                if service["spec"]["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items():
                    world.aliases[service["metadata"]["name"]] = pod_names(workload)[0]
        maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
        for workload in workloads:
            for pod in pod_names(workload):
                for described in containers_of(workload):
                    apply(world, workload, pod, described, maps)
    elif command == "wait":
        for container in list(world.containers.values()):
            world.wait(container)
    elif command == "get":
        # pods, all of them but those of Redis: those that have a sidecar.
        print("\n".join(f"pod/{name.removesuffix('.seriatim')}" for name in world.containers if name.endswith(".seriatim")))
    elif command == "logs":
        for name, container in world.containers.items():
            if name.endswith(f".{value('-c')}"):
                sys.stdout.write(container.log.read_text())
    elif command == "exec":
        deployment = options[0].removeprefix("deployment/")
        container = world.containers[f"{deployment}-0.{value('-c')}"]
        sys.exit(world.spawned(container, options[options.index("--") + 1 :]).wait())
    elif command == "port-forward":
        here, there = options[1].split(":")
        asyncio.run(forward(int(here), world.ports[f"{options[0].removeprefix('pod/')}:{there}"]))
    elif command == "delete":
        world.stop()
    else:
        sys.exit(f"kubectl {command} is not known here")
    world.save()


def pod_names(workload: dict) -> list[str]:
    return [f"{workload['metadata']['name']}-{number}" for number in range(workload["spec"]["replicas"])]


def containers_of(workload: dict) -> list[dict]:
    """In the order in which they start."""
    spec = workload["spec"]["template"]["spec"]
    return spec.get("initContainers", []) + spec["containers"]


def apply(world: World, workload: dict, pod: str, described: dict, maps: dict[str, dict[str, str]]) -> None:
    """Starts a container of a pod."""
    container = Container(f"{pod}.{described['name']}", pod, described.get("args", []))
    fields = {"metadata.name": pod, "metadata.namespace": "default"}
    for entry in described.get("env", []):
        given = entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        container.environment[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: container.environment[match[1]], given)
    volumes = {volume["name"]: volume for volume in workload["spec"]["template"]["spec"].get("volumes", [])}
    for mount in described.get("volumeMounts", []):
        name = volumes[mount["name"]]["configMap"]["name"]
        folder = STATE / "configmaps" / name
        folder.mkdir(parents=True, exist_ok=True)
        for key, text in maps[name].items():
            (folder / key).write_text(text)
        container.mounts[mount["mountPath"]] = str(folder)
    probe = described.get("readinessProbe", {})
    if http := probe.get("httpGet"):
        container.health = [f"http://127.0.0.1:{http['port']}{http['path']}"]
    elif tcp := probe.get("tcpSocket"):
        container.health = [f"tcp:127.0.0.1:{tcp['port']}"]
    if described["image"] in world.images:
        built(container, Path(world.images[described["image"]]))
    else:
        pulled(world, container, described["image"])
    world.start(container)


async def forward(here: int, there: int) -> None:
    """Passes connections on, until it is ended."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other, to_other = await asyncio.open_connection("127.0.0.1", there)
        await asyncio.gather(copy(reader, to_other), copy(other, writer))

    async with await asyncio.start_server(accept, "127.0.0.1", here) as server:
        await server.serve_forever()


if __name__ == "__main__":
    # As for other commands, a reader that has seen enough is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    tool, *words = sys.argv[1:]
    if tool == "docker" and words[:1] == ["compose"]:
        compose(words[1:])
    elif tool == "docker" and words[:1] == ["build"]:
        build(words[1:])
    elif tool == "kind" and words[:2] == ["load", "docker-image"]:
        if unknown := set(words[2:]) - World().images.keys():
            sys.exit(f"nobody has built {unknown}")
    elif tool == "kubectl":
        kubectl(words)
    else:
        sys.exit(f"{tool} {' '.join(words)} is not known here")

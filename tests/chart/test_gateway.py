"""A gateway before a Service of two pods, run: the configuration that the chart renders for two replicas of
the gateway, two backends, one Redis, and a round robin over TCP connections in place of kube-proxy.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import test_chart as chart

# Longer than anything here takes on a busy machine.
LIMIT = 30
# One gateway drains for at most this long.
DRAIN = 20


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until(condition, what):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"in {LIMIT} s: {what}"
        time.sleep(0.02)


class Backends:
    """The pods of the agent, and their own record of the turns that they ran."""

    def __init__(self, count):
        self.guard = threading.Lock()
        # For each turn: the pod, the session, when it began and when it had ended.
        self.turns = []
        # Turns of the session "held" end when this is set.
        self.release = threading.Event()
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), self.handler(pod)) for pod in range(count)]
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def handler(self, pod):
        backends = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                began = time.monotonic()
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                self.event(f"pod {pod}")
                if body["session_id"] == "held":
                    backends.release.wait(LIMIT)
                else:
                    time.sleep(0.02)
                # Before the last byte: from then on, the next turn may begin.
                with backends.guard:
                    backends.turns.append((pod, body["session_id"], began, time.monotonic()))
                self.event("end")
                self.wfile.write(b"0\r\n\r\n")

            def event(self, text):
                data = f"data: {text}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

            def log_message(self, *_):
                pass

        return Handler

    def overlaps(self):
        turns = sorted(self.turns, key=lambda turn: turn[2])
        return [
            (one, other)
            for place, one in enumerate(turns)
            for other in turns[place + 1 :]
            if one[1] == other[1] and other[2] < one[3]
        ]

    def close(self):
        self.release.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


class RoundRobin:
    """A Service: each TCP connection goes to the next pod, and stays there."""

    def __init__(self, targets):
        self.targets = targets
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        accepted = 0
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            pod = socket.create_connection(self.targets[accepted % len(self.targets)])
            accepted += 1
            threading.Thread(target=self.connect, args=(client, pod), daemon=True).start()

    def connect(self, client, pod):
        with client, pod:
            back = threading.Thread(target=self.pass_on, args=(pod, client), daemon=True)
            back.start()
            self.pass_on(client, pod)
            back.join()

    @staticmethod
    def pass_on(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # Gone: the other direction ends, too.
            for side in (source, sink):
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()


class Gateway:
    """One pod of the gateway, as the kubelet would run it."""

    def __init__(self, name, values):
        self.port, self.admin = free_port(), free_port()
        values = values | {"sidecar": {"address": "127.0.0.1", "port": self.port}, "admin": {"port": self.admin}}
        self.rendered = chart.render(values)
        container = chart.seriatim_of(chart.pod_of(chart.one(self.rendered, "Deployment")))
        self.folder = tempfile.TemporaryDirectory()
        config = Path(self.folder.name) / "config.toml"
        config.write_text(chart.one(self.rendered, "ConfigMap", "-config")["data"]["config.toml"])
        fields = {"metadata.namespace": "agents", "metadata.name": name}
        variables = {}
        for entry in container["env"]:
            value = entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            variables[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda named: variables[named[1]], value)
        command, file = container["args"][:-1], container["args"][-1]
        assert (command, file) == (["run", "--config"], "/etc/seriatim/config.toml"), "what the pod runs"
        self.log = open(Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen([chart.BINARY, *command, config], env=os.environ | variables, stderr=self.log)

    def helm_test(self):
        """What the pod of `helm test` says: its exit code and its text."""
        pod = chart.one(self.rendered, "Pod")
        service = chart.one(self.rendered, "Service", "-test")["metadata"]["name"]
        (container,) = pod["spec"]["containers"]
        # The kubelet's variable for the Service, and what it makes of the container's.
        given = {service.upper().replace("-", "_") + "_SERVICE_HOST": "127.0.0.1"}
        variables = {
            entry["name"]: re.sub(r"\$\((\w+)\)", lambda named: given[named[1]], entry["value"]) for entry in container["env"]
        }
        command = [chart.BINARY, *container["args"]]
        ran = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, cwd=self.folder.name)
        return ran.returncode, ran.stdout + ran.stderr

    def ask(self, session):
        """A turn: its connection, and its response once the head is there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        body = json.dumps({"session_id": session, "user_id": "u", "input": "hello"})
        connection.request("POST", "/chat", body, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def turn(self, session):
        """The status and the body of a whole turn; `None`: no connection."""
        try:
            connection, response = self.ask(session)
        except ConnectionError:
            return None, ""
        with closing(connection):
            return response.status, response.read().decode()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()


class RunningGateway(unittest.TestCase):
    def start(self):
        backends = Backends(2)
        self.addCleanup(backends.close)
        service = RoundRobin([server.server_address for server in backends.servers])
        self.addCleanup(service.close)
        port = free_port()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder.name],
            stdout=subprocess.DEVNULL,
        )
        self.addCleanup(redis.wait)
        self.addCleanup(redis.kill)
        values = {
            "mode": "gateway",
            "upstream": "http://{}:{}".format(*service.address),
            "replicaCount": 2,
            "store": {"url": f"redis://127.0.0.1:{port}/0"},
            "shutdown": {"drainSeconds": DRAIN},
        }
        gateways = []
        for name in ("gateway-a", "gateway-b"):
            gateway = Gateway(name, values)
            self.addCleanup(gateway.close)
            gateways.append(gateway)
            wait_until(lambda: gateway.helm_test() == (0, "ready\n"), f"helm test finds it ready: {gateway.helm_test()}")
        return backends, gateways

    def test_it_runs_one_turn_of_a_session_at_a_time_before_two_backends(self):
        backends, (first, second) = self.start()
        # One turn streams through one gateway; the second one is refused by the other.
        connection, response = first.ask("held")
        self.addCleanup(connection.close)
        self.assertEqual(response.status, 200)
        begun = response.readline()
        self.assertTrue(begun.startswith(b"data: pod "), f"it streams: {begun}")
        status, body = second.turn("held")
        self.assertEqual(status, 429, "the session is busy on every replica")
        self.assertEqual(json.loads(body)["status_code"], 429)
        self.assertEqual(second.turn("other")[0], 200, "another session is not")
        # SIGTERM: the gateway takes no new turn, and its running one goes on.
        first.process.send_signal(signal.SIGTERM)
        wait_until(lambda: first.turn("new")[0] in (None, 503), "it takes no turn any more")
        self.assertEqual(first.helm_test()[0], 1, "and isn't ready")
        self.assertIsNone(first.process.poll(), "but it has a turn to end")
        self.assertEqual(second.turn("held")[0], 429, "whose session is still busy")
        backends.release.set()
        self.assertTrue(response.read().endswith(b"data: end\n\n"), "it ends as the backend ends it")
        self.assertEqual(second.turn("held")[0], 200, "then the session is free for the other replica")
        self.assertEqual(first.process.wait(LIMIT), 0, "and the gateway exits")
        self.assertEqual(backends.overlaps(), [], "no backend saw two turns of a session")

    def test_turns_of_many_clients_never_overlap_and_reach_both_backends(self):
        backends, gateways = self.start()
        statuses = []

        def client(number):
            for place in range(20):
                # Two clients of a session, each at another gateway.
                statuses.append(gateways[(number + place) % 2].turn(f"session {number // 2}")[0])

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
            self.assertFalse(thread.is_alive(), "every client gets its answers")
        self.assertEqual(set(statuses), {200, 429}, "turns run, or are refused")
        self.assertEqual(len(backends.turns), statuses.count(200), "no turn ran twice, and none that was refused")
        self.assertEqual({pod for pod, *_ in backends.turns}, {0, 1}, "both pods work")
        self.assertEqual(backends.overlaps(), [], "by their own record, one turn of a session at a time")


if __name__ == "__main__":
    unittest.main()

"""The openai package whose connection breaks in the middle of an answer. Prints what it saw, as JSON.

Usage: resuming_client.py URL. Between the package and URL is a connection that ends behind the head of the first answer.
"""

import json
import socket
import sys
import threading
import time
import urllib.request

import openai

URL = sys.argv[1]
HOST, PORT = URL.removeprefix("http://").split(":")


def call(path, method):
    request = urllib.request.Request(f"{URL}{path}", method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
        return json.load(response)


def finish(session):
    """Lets all that is left of the turn come."""
    for _ in range(4):
        call(f"/go/{session}", "POST")


def until_whole(session):
    end = time.monotonic() + 20
    while call(f"/seen/{session}", "GET")[0]["end"] != "whole":
        assert time.monotonic() < end, "the turn ends"
        time.sleep(0.01)


class Cutting:
    """Passes connections on. The first one ends where its answer has `behind`: then `cut` is called before."""

    def __init__(self, behind, cut, again):
        self.behind, self.cut, self.again = behind, cut, again
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self.serve, args=(client, self.connections), daemon=True).start()

    def serve(self, client, number):
        with client, socket.create_connection((HOST, int(PORT))) as server:
            threading.Thread(target=self.requests, args=(client, server, number), daemon=True).start()
            answer = b""
            while piece := server.recv(65536):
                answer += piece
                if number == 1 and self.behind in answer:
                    end = answer.index(self.behind) + len(self.behind)
                    client.sendall(answer[len(answer) - len(piece) : end])
                    self.cut()
                    # The other thread may be in recv().
                    client.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(piece)

    def requests(self, client, server, number):
        try:
            while piece := client.recv(65536):
                server.sendall(piece)
                if number == 2:
                    self.again()
        except OSError:
            pass  # This connection was cut.


def chat(line, session, key="key", **options):
    client = openai.OpenAI(base_url=f"{line.url}/v1", api_key="k", max_retries=2, timeout=10)
    return client.chat.completions.create(
        model="test",
        messages=[{"role": "user", "content": "hi"}],
        extra_headers={"x-session-id": session, "idempotency-key": f"{key} {session}"},
        **options,
    )


def nothing():
    pass


def running():
    """The package sends its request again while the turn runs."""
    line = Cutting(b"\r\n\r\n", nothing, lambda: finish("running"))
    answer = chat(line, "running")
    return {"shows": answer.choices[0].message.content, "connections": line.connections}


def ended():
    """The package sends its request again after the turn."""

    def cut():
        finish("ended")
        until_whole("ended")

    line = Cutting(b"\r\n\r\n", cut, nothing)
    answer = chat(line, "ended")
    return {"shows": answer.choices[0].message.content, "connections": line.connections}


def streamed():
    """The package doesn't send a streamed request again once it has the head. Its caller does, with the same key."""
    line = Cutting(b"\r\n\r\n", nothing, lambda: finish("streamed"))
    saw = {}
    try:
        for _ in chat(line, "streamed", stream=True):
            pass
    except Exception as error:  # The package doesn't wrap all of them.
        saw["error"] = type(error).__name__
    saw["connections"] = line.connections
    chunks = chat(line, "streamed", stream=True)
    saw["shows"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return saw


saw = {scene.__name__: scene() for scene in [running, ended, streamed]}
for session, one in saw.items():
    one["turns"] = call(f"/seen/{session}", "GET")
print(json.dumps(saw))

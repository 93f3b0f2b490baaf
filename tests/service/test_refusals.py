"""Refusals for want of room, which most requests get under overload: told by the connection itself, before
there is a task, and yet the same as those that take the way through the application."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import Response

from service.connection import Connections, protocol
from service.received import received_of
from tests.conftest import Server, free_port, start_server, wait_until_ready

SMALL = {"input": "Good morning, and welcome to all of you."}
KEYS: dict[str, str] = {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose queue has room for hardly anything, with keys."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, options in (
        ("holder", ["--role", "admin"]),
        ("small", ["--tokens-per-minute", "100000"]),
    ):
        command = [sys.executable, "-m", "service.security.keys_command", "keys.json", "create"]
        done = subprocess.run(
            [*command, name, *options],
            cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        KEYS[name] = done.stdout.split()[-1]
    made = start_server(
        folder, demo="false", max_queue_tokens=16, api_keys_file=folder / "keys.json"
    )
    wait_until_ready(made)
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()
    assert "Traceback" not in made.log.read_text()


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=bearer("holder")).text
    found = re.findall(rf"^{re.escape(name)} (.+)$", text, flags=re.M)
    return sum(map(float, found))


@contextmanager
def full(server: Server) -> Iterator[None]:
    """While one client's long texts fill the queue."""
    texts = [f"{n} " + "All human beings are born free and equal. " * 60 for n in range(300)]
    answers: list[httpx.Response] = []

    def hold() -> None:
        url, headers = f"{server.url}/v1/embeddings", bearer("holder") | {"x-lane": "interactive"}
        answers.append(httpx.post(url, json={"input": texts}, headers=headers, timeout=300))

    thread = threading.Thread(target=hold)
    thread.start()
    while not metric(server, "mexma_queue_tokens"):
        time.sleep(0.01)
    try:
        yield
        assert thread.is_alive(), "the queue was full all the time"
    finally:
        thread.join()
    assert answers[0].status_code == 200


def ask(server: Server, content: Any = SMALL, **more: Any) -> httpx.Response:
    headers = bearer("small") | more.pop("headers", {})
    path = more.pop("path", "/v1/embeddings")
    return httpx.post(server.url + path, json=content, headers=headers, timeout=30, **more)


def test_a_refusal_is_the_same_on_either_way(server):
    counted = 'mexma_http_requests_total{route="/v1/embeddings",status="503"}'
    host = httpx.URL(server.url).netloc.decode()
    with full(server):
        before = metric(server, counted)
        short = ask(server)
        long = ask(server, headers={"origin": f"http://{host}"})  # looked at whole
        assert metric(server, counted) == before + 2
        tei = ask(server, {"inputs": SMALL["input"]}, path="/embed")
        named = ask(server, headers={"x-request-id": "my-own-1"})
        wrong = ask(server, headers={"authorization": "Bearer nobody"})
    assert short.status_code == long.status_code == 503
    assert short.headers.keys() == long.headers.keys()
    assert {"retry-after", "retry-after-ms", "x-ratelimit-limit-tokens"} <= short.headers.keys()
    assert short.headers["x-request-id"] != long.headers["x-request-id"]
    # Times and numbers are of two moments, and so is whether others' places are before.
    differing = re.compile(r"\d+(\.\d+)?|; retry [^\"]*")
    assert differing.sub("", short.text) == differing.sub("", long.text)
    assert short.json()["error"]["code"] == "overloaded"
    assert (tei.status_code, tei.json()["error_type"]) == (503, "Overloaded")
    assert named.headers["x-request-id"] == "my-own-1"
    assert wrong.status_code == 401, "who is not let in is not told how full it is"
    assert ask(server).status_code == 200


def request_of(number: int, version: bytes = b"1.1", more: bytes = b"") -> bytes:
    body = json.dumps(SMALL).encode()
    return (
        b"POST /v1/embeddings HTTP/%s\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\nx-request-id: r%d\r\n%scontent-length: %d\r\n\r\n%s"
        % (version, KEYS["small"].encode(), number, more, len(body), body)
    )


def said(server: Server, sent: bytes, until: int) -> bytes:
    """What the server answers, until so many answers or its end of the connection."""
    url, parts = httpx.URL(server.url), b""
    with closing(socket.create_connection((url.host, url.port), timeout=60)) as client:
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        while parts.count(b"HTTP/1.1 ") < until or not parts.endswith(b"}"):
            if not (part := client.recv(2**16)):
                break
            parts += part
        sender.join()
    return parts


def test_a_thousand_requests_in_one_piece_are_refused_in_their_order(server):
    with full(server):
        answers = said(server, b"".join(request_of(n) for n in range(1_000)), 1_000)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"503"] * 1_000
    assert re.findall(rb"x-request-id: (\w+)", answers) == [b"r%d" % n for n in range(1_000)]


def test_what_the_client_says_of_the_connection_holds(server):
    with full(server):
        closed = said(server, request_of(1, more=b"connection: close\r\n") + request_of(2), 9)
        old = said(server, request_of(1, version=b"1.0"), 9)
    for answer in (closed, old):
        assert answer.count(b"HTTP/1.1 503") == 1
        assert b"connection: close" in answer


@pytest.mark.parametrize("later_s", [0.01, 1.5], ids=["soon", "late"])
def test_a_body_that_comes_later_is_waited_for(server, later_s):
    """Soon, as most clients send it: as if it had come at once. Late: the application waits, and refuses."""
    whole = request_of(1)
    url = httpx.URL(server.url)
    with (
        full(server),
        closing(socket.create_connection((url.host, url.port), timeout=60)) as client,
    ):
        client.sendall(whole[:-5])
        time.sleep(later_s)
        client.sendall(whole[-5:])
        assert client.recv(2**16).startswith(b"HTTP/1.1 503")


def test_a_body_that_is_too_large_is_told_so_and_not_to_come_back(tmp_path):
    server = start_server(tmp_path, demo="false", max_queue_tokens=16, max_body_bytes=100)
    wait_until_ready(server)
    try:
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "x" * 200})
        assert answer.status_code == 413 and answer.json()["error"]["limit"] == 100
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0


# By the connection alone


@contextmanager
def listening(app: Any, refuse: Any) -> Iterator[int]:
    connections = Connections(header_timeout_s=5, write_timeout_s=5, maximum=100, refuse=refuse)
    port = free_port()
    config = uvicorn.Config(
        app, port=port, http=protocol(connections), ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


def test_no_task_is_made_for_what_is_refused_and_the_others_keep_their_places():
    """Every third is refused; the application sees the others only, each with its whole body."""
    seen, tasks = [], []

    async def app(scope, receive, send):
        tasks.append(asyncio.current_task())
        seen.append(received_of(scope).body)
        await asyncio.sleep(0.001)
        body = b"taken " + scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refuse(scope):
        return Response("no", 503) if int(scope["path"][1:]) % 3 == 0 else None

    sent = b"".join(
        b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n%03d" % (n, n) for n in range(90)
    )
    with listening(app, refuse) as port:
        answers = b""
        with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
            client.sendall(sent)
            while answers.count(b"HTTP/1.1 ") < 90 or not answers.endswith(b"/89"):
                part = client.recv(2**16)
                assert part, answers
                answers += part
    statuses = re.findall(rb"HTTP/1.1 (\d+)", answers)
    assert statuses == [b"503" if n % 3 == 0 else b"200" for n in range(90)]
    assert len(set(tasks)) == 60
    assert seen == [b"%03d" % n for n in range(90) if n % 3]


def test_a_request_is_told_that_its_client_left():
    left = []

    async def app(scope, receive, send):
        gone = asyncio.Event()
        received_of(scope).on_left = gone.set
        await asyncio.wait_for(gone.wait(), 10)
        left.append(received_of(scope).left)

    with listening(app, None) as port:
        with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            time.sleep(0.2)
            assert not left
        for _ in range(100):
            if left:
                break
            time.sleep(0.05)
    assert left == [True]


def in_two(port: int, size: bytes, pause_s: float) -> bytes:
    """The answer to a request of 5 bytes, sent after its head."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n" + size + b"\r\n\r\n")
        time.sleep(pause_s)
        client.sendall(b"5\r\nwhole\r\n0\r\n\r\n" if b"chunked" in size else b"whole")
        return client.recv(2**16)


def test_a_small_body_is_held_for_until_it_is_whole_and_not_for_long():
    """Which the application then gets with the request; otherwise it receives it as ever."""
    asked = []

    async def app(scope, receive, send):
        body, whole = received_of(scope).body, True
        if body is None:
            body, whole = b"", False
            while (message := await receive())["more_body"] or message["body"]:
                body += message["body"]
                if not message["more_body"]:
                    break
        said = b"%s %s" % (body, b"held" if whole else b"received")
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    def refuse(scope):
        asked.append(received_of(scope).body)
        raise RuntimeError("planted: a fault in refusing is no fault of the request")

    five, chunked = b"content-length: 5", b"transfer-encoding: chunked"
    with listening(app, refuse) as port:
        assert in_two(port, five, 0.05).endswith(b"whole held")
        assert in_two(port, five, 2.5).endswith(b"whole received")
        assert in_two(port, chunked, 0.05).endswith(b"whole received")
        began = time.monotonic()
        with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
            head = (
                b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
            )
            client.sendall(head)
            assert client.recv(100).startswith(b"HTTP/1.1 100"), "asked for at once"
            client.sendall(b"whole")
            assert client.recv(2**16).endswith(b"whole received")
        assert time.monotonic() - began < 5
    assert asked == [b"whole", None, None, None]

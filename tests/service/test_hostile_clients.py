"""Clients that mean harm or do not know better, against a real server: the others are served meanwhile,
memory stays flat, no file stays open, and none of them is waited for without end."""

from __future__ import annotations

import gzip
import json
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from service.connection import MAX_HEAD_BYTES, OWN_FILES
from tests.conftest import Server, start_server, wait_until_ready

HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n"
)
MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with little patience."""
    made = start_server(
        tmp_path_factory.mktemp("hostile"),
        demo="false",
        header_timeout_s=1,
        body_timeout_s=1,
        write_timeout_s=1,
    )
    wait_until_ready(made)
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()
    assert "Traceback" not in made.log.read_text()


def connect(server: Server, *, receives_bytes: int | None = None) -> socket.socket:
    """receives_bytes: what the kernel takes for a client that does not read."""
    url = httpx.URL(server.url)
    made = socket.socket()
    if receives_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
    made.settimeout(30)
    made.connect((url.host, url.port))
    return made


def request_of(content: object, headers: bytes = b"") -> bytes:
    body = json.dumps(content).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + headers + b"content-length: %d\r\n\r\n" % len(body) + body


def all_of(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with suppress(ConnectionError):
        while part := client.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def is_served(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "Good morning"}, timeout=30)
    assert answer.status_code == 200


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_hundreds_of_slow_clients_harm_nobody_and_are_cut(server):
    before = files(server)
    kinds = {
        b"": b"",
        b"GET /health/live HTTP/1.1\r\nx-slow: ": b"x",
        HEAD + b"\r\n": b"1\r\nx\r\n",
    }
    done = threading.Event()
    with ExitStack() as stack:
        slow = []
        for begin, byte in kinds.items():
            for _ in range(150):
                client = stack.enter_context(connect(server))
                client.sendall(begin)
                slow.append((client, begin, byte))

        def trickle() -> None:
            while not done.wait(0.1):
                for client, _, byte in slow:
                    with suppress(OSError):  # those that are cut
                        client.send(byte)

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            for _ in range(5):
                is_served(server)
            for client, begin, _ in slow:
                said = all_of(client)
                assert said.startswith(b"HTTP/1.1 408 ") if begin else not said
                is_served(server) if client is slow[200][0] else None
        finally:
            done.set()
            thread.join()
    until(lambda: files(server) <= before)


def test_answers_that_nobody_takes_are_not_kept(server):
    """Sixteen of 8 MB, which the kernel's own buffers cannot hold, time after time. What the allocator
    keeps for itself comes and goes by the size of a few answers; what were kept would add up."""
    is_served(server)
    before = files(server)
    leave_answers(server, before)
    memory = server.rss_bytes()
    for _ in range(8):
        leave_answers(server, before)
    assert server.rss_bytes() - memory < 8 * 16 * 8 * MIB / 2


def leave_answers(server, before):
    """Sixteen clients ask for much and take nothing, until the server has cut them all off."""
    with ExitStack() as stack:
        lazy = [stack.enter_context(connect(server, receives_bytes=4096)) for _ in range(16)]
        for client in lazy:
            client.sendall(request_of({"input": ["the same"] * 2048}))
        for client in lazy:
            poll = select.poll()
            poll.register(client, select.POLLRDHUP)
            while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(100)):
                is_served(server)
            with pytest.raises(ConnectionError):
                while client.recv(2**16):
                    pass
        until(lambda: files(server) <= before)


def test_a_slow_reader_that_keeps_a_pace_gets_all(server):
    with connect(server, receives_bytes=2**16) as client:
        client.sendall(request_of({"input": ["the same"] * 2048}, b"connection: close\r\n"))
        taken, began = [], time.monotonic()
        while part := client.recv(2**16):
            taken.append(part)
            if time.monotonic() - began < 3:  # well beyond `write_timeout_s`
                time.sleep(0.01)
    head, _, body = b"".join(taken).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert len(json.loads(body)["data"]) == 2048


def test_a_client_that_closed_its_side_gets_its_answer(server):
    before = files(server)
    quick, long = {"input": "x"}, {"input": [f"{i} " + "word " * 100 for i in range(32)]}
    for content in (quick, quick, long):
        with connect(server) as client:
            client.sendall(request_of(content))
            client.shutdown(socket.SHUT_WR)
            said = all_of(client)
        # A machine that is slow enough is asked after in the quick ones, too.
        assert said.startswith(b"HTTP/1.1 102 Processing\r\n\r\n") or content is quick
        head, _, body = said.removeprefix(b"HTTP/1.1 102 Processing\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body)["data"]
    two = request_of(quick) + request_of(long)
    with connect(server) as client:
        client.sendall(two)
        client.shutdown(socket.SHUT_WR)
        said = all_of(client)
    assert said.count(b"HTTP/1.1 200 ") == 2
    until(lambda: files(server) <= before)


@pytest.mark.parametrize("texts", [80, 100, 500])
def test_work_of_a_client_that_has_gone_altogether_is_not_done(server, texts):
    """However its body came: in one piece that fills what may wait to be read, or in many."""

    def gone() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'status="499"' in line)

    before = gone()
    with connect(server) as client:
        client.sendall(request_of({"input": [f"{i} " + "word " * 400 for i in range(texts)]}))
        until(lambda: "mexma_queue_items 0.0" not in httpx.get(f"{server.url}/metrics").text)
    until(lambda: gone() == before + 1)
    assert "mexma_queue_items 0.0" in httpx.get(f"{server.url}/metrics").text


def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    before = files(server)
    for _ in range(50):
        with connect(server) as client:
            client.sendall(request_of({"input": "x" * 1000})[:-500])
    until(lambda: files(server) <= before)
    is_served(server)


def endless(client: socket.socket, piece: bytes, sent: int = 0, most: int = 2**30) -> int:
    """Send until somebody stops us; how much it was."""
    with suppress(ConnectionError):
        while sent < most:
            client.sendall(piece)
            sent += len(piece)
    return sent


CHUNK = b"%x\r\n" % MIB + b"x" * MIB + b"\r\n"


@pytest.mark.parametrize(
    ("begin", "piece", "status"),
    [
        (HEAD + b"\r\n", CHUNK, b"413"),
        (b"GET /health/live HTTP/1.1\r\nx-long: ", b"x" * MIB, b"431"),
        (b"GET /health/live HTTP/1.1\r\n", b"x-more: 1\r\n" * 2**16, b"431"),
        (b"GET /", b"x" * MIB, b"431"),
        (HEAD + b"\r\n1\r\nx\r\n0\r\n", b"x-trailing: 1\r\n" * 2**16, b"431"),
        (HEAD + b"\r\n1;", b"x" * MIB, b"431"),
    ],
    ids=["body", "header", "headers", "path", "trailers", "chunk's name"],
)
def test_a_gigabyte_is_refused_while_it_comes(server, begin, piece, status):
    is_served(server)
    before = server.rss_bytes()
    with connect(server) as client:
        client.sendall(begin)
        sent = endless(client, piece)
        assert sent < 2**30
        assert all_of(client).startswith(b"HTTP/1.1 " + status)
    assert server.rss_bytes() - before < 64 * MIB
    is_served(server)


def test_a_gigabyte_that_is_declared_is_refused_unread(server):
    with connect(server) as client:
        client.sendall(HEAD.replace(b"transfer-encoding: chunked", b"content-length: 1073741824"))
        client.sendall(b"\r\n")
        assert b"the body has 1073741824 bytes" in all_of(client)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"content-length: 2\r\ncontent-length: 3\r\n", b"Content-Length"),
        (b"content-length: 2\r\ntransfer-encoding: chunked\r\n", b"Content-Length"),
        (b"content-length: +2\r\n", b"Content-Length"),
        (b"content-length : 2\r\n", b"header"),
        (b"bad name: 2\r\n", b"header"),
        (b"transfer-encoding: xchunked\r\n", b"Transfer-Encoding"),
        (b"x: \x01\r\n", b"header"),
        (b"host: y\r\n", b"more than one Host"),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused_and_told_why(server, head, says):
    with closing(connect(server)) as client:
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n{}")
        answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert says in answer.partition(b"\r\n\r\n")[2], answer


def split(answer: bytes) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of an answer that is the only one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nbad name: 2\r\n\r\n", 400, "no_request"),
        (b"GET / HTTP/1.1\r\nx-request-id: mine\r\nhost: x\r\nhost: y\r\n\r\n", 400, "no_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "no_request"),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * (2 * MAX_HEAD_BYTES), 431, "head_too_large"),
        (b"GET /?" + b"x" * 66_000 + b" HTTP/1.1\r\n\r\n", 431, "head_too_large"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", 400, "no_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "no_request"),
        (b"GET / HTTP/1.1\r\nx: ", 408, "head_timeout"),
    ],
    ids=["name", "hosts", "tls", "long", "query", "connect", "http2", "slow"],
)
def test_what_is_no_request_is_answered_as_one_is(server, sent, status, code):
    """As JSON, with an id to ask for, and counted."""
    counted = f'http_requests_total{{route="unmatched",status="{status}"}}'
    before = counts(server).get(counted, 0)
    with closing(connect(server)) as client:
        client.sendall(sent[:20])
        time.sleep(0.05)
        client.sendall(sent[20:])
        found, headers, body = split(all_of(client))
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"]["type"] == "invalid_request_error"
    said = body["error"]["message"]
    assert said and "callback" not in said and "Pause" not in said
    if b"mine" in sent:
        assert headers["x-request-id"] == "mine"
    else:
        assert len(headers["x-request-id"]) == 32
    assert headers["connection"] == "close"
    assert counts(server)[counted] == before + 1


def counts(server: Server) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {
        name.removeprefix("mexma_"): float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_garbage_behind_a_request_does_not_take_its_answer(server):
    """Nor the answers of those before it; the connection ends with the last."""
    good = request_of({"input": "Hyvää huomenta"})
    with closing(connect(server)) as client:
        client.sendall(good + good + b"no request at all\r\n\r\n" + good)
        answers = all_of(client)
    assert answers.count(b"HTTP/1.1 200 ") == 2 and b"HTTP/1.1 400 " not in answers
    with closing(connect(server)) as client:
        client.sendall(good)
        time.sleep(0.001)  # comes later, perhaps while the engine computes
        client.sendall(b"no request at all\r\n\r\n")
        answers = all_of(client)
    assert answers.startswith(b"HTTP/1.1 200 ")
    is_served(server)


def test_an_answer_to_head_has_no_body(server):
    with closing(connect(server)) as client:
        client.sendall(b"HEAD /info HTTP/1.1\r\nhost: x\r\n\r\nGET /info HTTP/1.0\r\n\r\n")
        first, _, rest = all_of(client).partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert rest.startswith(b"HTTP/1.1 200 "), "the next answer follows"


def test_what_grows_when_it_is_unpacked_is_not_unpacked(server):
    bomb = gzip.compress(b'{"input": "' + bytes(256 * MIB) + b'"}', 1)
    before = server.rss_bytes()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = httpx.post(f"{server.url}/v1/embeddings", content=bomb, headers=headers)
    assert answer.status_code in (400, 415)
    assert server.rss_bytes() - before < 64 * MIB


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [900, 1_000, 100_000, 3_000_000])
def test_nesting_gets_an_answer_wherever_it_is(server, opened, depth):
    nested = opened * depth + b"1" + (b"]" if opened == b"[" else b"}") * depth
    httpx.put(f"{server.url}/v1/collections/deep").raise_for_status()
    headers = {"content-type": "application/json"}
    for path, body in {
        "/v1/embeddings": b'{"input": %s}',
        "/embed": b'{"inputs": %s}',
        "/v1/collections/deep/documents": b'{"documents": [{"id": "1", "text": "x", "metadata": {"m": %s}}]}',
        "/v1/collections/deep/documents/count": b'{"filter": %s}',
        "/v1/collections/deep/search": b'{"queries": ["x"], "filter": {"not": %s}}',
        "/v1/collections/deep/migration": b'{"model": %s}',
    }.items():
        answer = httpx.post(f"{server.url}{path}", content=body % nested, headers=headers)
        assert answer.status_code < 500, (path, answer.text)
    httpx.delete(f"{server.url}/v1/collections/deep").raise_for_status()


def test_a_client_that_offers_another_protocol_is_answered_in_this_one(server):
    """As Java's client does: an upgrade to HTTP/2 with every request, and the body all the same."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    chunked = HEAD + offer + b'\r\nb\r\n{"input": "\r\n3\r\nx"}\r\n0\r\n\r\n'
    get = b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n"
    last = request_of({"input": "x"}, b"connection: close\r\n")
    for pieces in (
        [request_of({"input": "x"}, offer), get, get, chunked, last],
        [request_of({"input": "x"}, offer) + get + chunked + last],
        [bytes([b]) for b in request_of({"input": "x"}, offer) + get + chunked + last],
    ):
        with connect(server) as client:
            for piece in pieces:
                client.sendall(piece)
            said = all_of(client)
        assert said.count(b"HTTP/1.1 200 ") == said.count(b"HTTP/1.1 ") >= 4, said[:2000]


def open_many(server: Server, number: int, stack: ExitStack) -> Sequence[socket.socket]:
    return [stack.enter_context(connect(server)) for _ in range(number)]


def test_ten_thousand_connections(tmp_path):
    """Or as many as this machine lets a process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maximum = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard - OWN_FILES - 700)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = start_server(tmp_path, demo="false", header_timeout_s=600, max_connections=maximum)
    try:
        wait_until_ready(server)
        is_served(server)
        before = server.rss_bytes()
        with ExitStack() as stack:
            first = open_many(server, maximum - 10, stack)
            is_served(server)
            assert (server.rss_bytes() - before) / len(first) < 32 * 1024, "bytes a connection"
            busy = first[5]
            busy.sendall(request_of({"input": "x"}))
            assert busy.recv(12) == b"HTTP/1.1 200"
            more = open_many(server, 600, stack)
            is_served(server)
            assert first[0].recv(1) == b"", "the oldest that only waited made room"
            more[-1].sendall(request_of({"input": "x"}, b"connection: close\r\n"))
            assert all_of(more[-1]).startswith(b"HTTP/1.1 200 ")
            is_served(server)
        until(lambda: "too many connections" in server.log.read_text())
        until(lambda: files(server) < 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.process.terminate()
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("ends", ["fin", "rst"])
def test_clients_that_send_several_requests_and_leave_fill_no_log(server, ends):
    before = server.log.read_text()
    for _ in range(10):
        with closing(connect(server)) as client:
            client.sendall(request_of({"input": "Good morning"}) * 5)
            if ends == "rst":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    is_served(server)
    assert "ERROR" not in server.log.read_text()[len(before) :]


@pytest.mark.parametrize("size", [66_000, 140_000, 1_000_000])
def test_a_head_that_comes_at_once_is_bounded_alike(server, size):
    with closing(connect(server)) as client:
        with suppress(ConnectionError):
            client.sendall(
                b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-more: %s\r\n\r\n" % (b"a" * size)
            )
        assert all_of(client).startswith(b"HTTP/1.1 431")
    with closing(connect(server)) as client:
        client.sendall(
            b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-more: %s\r\n\r\n" % (b"a" * 60_000)
        )
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_a_head_is_bounded_by_its_bytes_however_they_come(server):
    with connect(server) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\nconnection: close\r\nx-long: ")
        client.sendall(b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n")
        assert all_of(client).startswith(b"HTTP/1.1 200 ")

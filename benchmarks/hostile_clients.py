"""What clients do to a server that they mean harm, or that do not know better: `benchmarks.hostile` says to whom.

Each is a function of an address that does it and says what was answered. None waits for ever.
"""

from __future__ import annotations

import gzip
import json
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

Address = tuple[str, int]

# An answer that does not come in this time is none.
PATIENCE_S = 20.0
GIGABYTE = 2**30
BLOCK = b" " * 2**20


@dataclass(frozen=True)
class Attack:
    """name: of a row. act: does it, and says in a few words what was answered."""

    name: str
    act: Callable[[Address], str]


def connect(address: Address, *, receives_bytes: int = 0) -> socket.socket:
    made = socket.socket()
    if receives_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
    made.settimeout(PATIENCE_S)
    made.connect(address)
    return made


def head(*further: bytes, path: bytes = b"/v1/embeddings") -> bytes:
    lines = (b"host: x", b"content-type: application/json", *further)
    return b"POST " + path + b" HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"


def whole(body: bytes, *further: bytes) -> bytes:
    return head(b"content-length: %d" % len(body), *further) + body


def said(client: socket.socket) -> str:
    """The status of what comes, or how it ended without."""
    found = b""
    try:
        while b"\r\n" not in found or found.startswith(b"HTTP/1.1 1"):
            if not (part := client.recv(2**16)):
                return "closed without an answer"
            found += part
            if found.startswith(b"HTTP/1.1 1") and b"\r\n\r\n" in found:
                found = found.split(b"\r\n\r\n", 1)[1]
    except TimeoutError:
        return f"no answer in {PATIENCE_S:g} s"
    except OSError:
        return "connection reset"
    return found.split(b" ", 2)[1].decode("latin-1")


def answer(address: Address, request: bytes) -> str:
    with connect(address) as client:
        try:
            client.sendall(request)
        except TimeoutError:
            return f"took no more for {PATIENCE_S:g} s"
        except OSError:
            pass  # refused while it was sent; the reason may have come
        return said(client)


def answers(address: Address, cases: dict[str, bytes]) -> str:
    return ", ".join(f"{name} {answer(address, whole(body))}" for name, body in cases.items())


def counted(found: Iterable[str]) -> str:
    return ", ".join(f"{n} x {what}" for what, n in Counter(found).most_common())


def is_readable(client: socket.socket) -> bool:
    poll = select.poll()  # select takes no more than a thousand files
    poll.register(client, select.POLLIN)
    return bool(poll.poll(0))


def still(clients: list[socket.socket]) -> str:
    """Of connections: how many were closed by now, after which last words."""
    found = []
    for client in clients:
        if is_readable(client):
            client.settimeout(1)
            what = said(client)
            found.append(f"answered {what}" if what.isdigit() else "closed")
        else:
            found.append("still open")
        client.close()
    return counted(found)


def many(
    address: Address,
    count: int,
    begin: bytes,
    hold_s: float,
    byte: bytes = b"",
    every_s: float = 1.0,
) -> str:
    """`count` clients that say `begin` and then `byte` each second."""
    clients = []
    with suppress(OSError):
        for _ in range(count):
            client = connect(address)
            clients.append(client)
            if begin:
                client.sendall(begin)
    until = time.monotonic() + hold_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(every_s, left))
        for client in clients if byte else ():
            with suppress(OSError):
                client.send(byte)
    opened = f"only {len(clients)} were let in; " if len(clients) < count else ""
    return opened + still(clients)


def gigabyte(address: Address, declared: bool) -> str:
    begin = (
        head(b"content-length: %d" % GIGABYTE) if declared else head(b"transfer-encoding: chunked")
    )
    sent = 0
    with connect(address) as client:
        client.sendall(begin)
        piece = BLOCK if declared else b"%x\r\n%s\r\n" % (len(BLOCK), BLOCK)
        try:
            while sent < GIGABYTE and not is_readable(client):
                client.sendall(piece)
                sent += len(BLOCK)
            if sent >= GIGABYTE and not declared:
                client.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        client.settimeout(60)
        return f"{said(client)} after {sent / 2**20:.0f} MB"


def half_closed(address: Address) -> str:
    with connect(address) as client:
        client.sendall(whole(json.dumps({"input": ["Good morning"], "model": "m"}).encode()))
        client.shutdown(socket.SHUT_WR)
        return said(client)


def half_closed_early(address: Address) -> str:
    with connect(address) as client:
        client.sendall(head(b"content-length: 100") + b'{"input"')
        client.shutdown(socket.SHUT_WR)
        return said(client)


def takes_nothing(address: Address, hold_s: float) -> str:
    """Two answers of some 8 MB each, of which the kernel holds no more than half."""
    body = json.dumps({"input": ["a"] * 2000, "model": "m"}).encode()
    clients = [connect(address, receives_bytes=4096) for _ in range(2)]
    for client in clients:
        client.sendall(whole(body))
    time.sleep(hold_s)
    ended = Counter()
    for client in clients:
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        ended["cut off" if error else "still held"] += 1
        client.close()
    return ", ".join(f"{n} x {what}" for what, n in ended.items())


def leaves(address: Address) -> str:
    for _ in range(50):
        with connect(address) as client:
            client.sendall(head(b"content-length: 10000") + b'{"input": "')
    return "(left)"


def leaves_work(address: Address) -> str:
    body = json.dumps({"input": [f"text number {i} of many" for i in range(2000)], "model": "m"})
    with connect(address) as client:
        client.sendall(whole(body.encode()))
        time.sleep(1)
    time.sleep(15)
    return "(left after 1 s)"


def flood(address: Address, count: int) -> str:
    clients = []
    why = ""
    try:
        for _ in range(count):
            client = socket.socket()
            client.settimeout(5)
            client.connect(address)
            clients.append(client)
    except OSError as error:
        why = f" ({type(error).__name__})"
    time.sleep(5)
    opened = len(clients)
    return f"{opened} opened{why}; {still(clients)}"


def attacks(hold_s: float, connections: int) -> list[Attack]:
    trickle = b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: "
    text = b'{"model": "m", "input": %s}'
    return [
        Attack("300 clients, a byte of the head a second", lambda a: many(a, 300, trickle, hold_s, b"x")),
        Attack("300 clients, a byte of the body a second", lambda a: many(a, 300, head(b"content-length: 100000"), hold_s, b" ")),
        Attack("300 connections that say nothing", lambda a: many(a, 300, b"", hold_s)),
        Attack(f"{connections:,} connections", lambda a: flood(a, connections)),
        Attack("a client that closes its side after its request", half_closed),
        Attack("a client that closes its side within its request", half_closed_early),
        Attack("a gigabyte, declared", lambda a: gigabyte(a, True)),
        Attack("a gigabyte in chunks", lambda a: gigabyte(a, False)),
        Attack("JSON nested 100,000 deep", lambda a: answer(a, whole(text % (b"[" * 100_000 + b"]" * 100_000)))),
        Attack("a header of 32 MB", lambda a: answer(a, head(b"x-long: " + b"x" * (32 * 2**20), b"content-length: 0"))),
        Attack("10 MB of zeros, compressed", lambda a: answer(a, whole(gzip.compress(bytes(10 * 2**20)), b"content-encoding: gzip"))),
        Attack("2 clients that do not take their answers of 8 MB", lambda a: takes_nothing(a, 2 * hold_s)),
        Attack("50 clients that leave within their body", leaves),
        Attack("a client that leaves 2,000 texts behind", leaves_work),
        Attack("NaN, Infinity", lambda a: answers(a, {"NaN": text % b"NaN", "Infinity": text % b"[Infinity]"})),
        Attack("not UTF-8, half a surrogate", lambda a: answers(a, {"not UTF-8": text % b'["\xff\xfe"]', "surrogate": text % b'["\\ud800"]'})),
        Attack("empty: text, among others, list", lambda a: answers(a, {"text": text % b'[""]', "among others": text % b'["a", ""]', "list": text % b"[]"})),
        Attack("a text of a million characters", lambda a: answer(a, whole(text % (b'["' + b"word " * 200_000 + b'"]')))),
        Attack("a text of ten million characters", lambda a: answer(a, whole(text % (b'["' + b"word " * 2_000_000 + b'"]')))),
        Attack("wrong types", lambda a: answers(a, {"number": text % b"1", "null": text % b"null", "objects": text % b'[{"a": 1}]', "nested": text % b'[[["a"]]]', "mixed": text % b'["a", 1]'})),
    ]  # fmt: skip

"""A load generator in processes of its own: `python -m benchmarks.load URL --clients 64 --texts 1`.

Requests are bytes made beforehand and answers are not parsed beyond their length, so that it takes some
30 us of processor time a request and is not what limits a server. Closed loop: each client sends when its last
answer has come. Open loop (`--rate`): requests start by a Poisson process whether answers come or not, and times
count from when a request was due, so that a stall is seen by all that it delays. Prints JSON.

`--record FILE` holds an open load for long: as many connections as are under way, no request's text ever sent by
another, a share of clients (`--returning`) that come back when they were told to, and what became of each written
to a file (`Answers`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

from mexma.sample import tatoeba_sample


def sentences(count: int, seed: int = 0) -> list[str]:
    """A length mix: short sentences, every eighth made of four. No two are equal, so that nothing is
    computed once for two requests; what tells them apart is as long for every seed, since it is tokens, too."""
    rng = random.Random(seed)
    pool = [s.text for s in tatoeba_sample()]
    return [
        " ".join(rng.sample(pool, 4 if i % 8 == 0 else 1)) + f" {rng.randrange(10_000):04d}{i:05d}"
        for i in range(count)
    ]


def requests(
    address: str, path: str, texts: list[str], size: int, headers: dict[str, str]
) -> list[bytes]:
    """HTTP requests of `size` texts each, to OpenAI's contract."""
    made = []
    for i in range(0, len(texts) - size + 1, size):
        content = {"input": texts[i : i + size], "model": "m", "encoding_format": "base64"}
        body = json.dumps(content, ensure_ascii=False).encode()
        lines = [f"POST {path} HTTP/1.1", f"host: {address}", "content-type: application/json"]
        lines += [f"{k}: {v}" for k, v in headers.items()] + [f"content-length: {len(body)}"]
        made.append("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return made


class Connection(asyncio.Protocol):
    """One client: sends a request's bytes and says when the whole answer has come."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.expected: int | None = None
        self.head = b""
        self.done: Callable[[int], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes, done: Callable[[int], object]) -> None:
        """done: told the status of the answer; 0 when the connection was cut."""
        self.done = done
        self.transport.write(request)

    async def ask(self, request: bytes) -> int:
        """The status."""
        answer = self.loop.create_future()
        self.send(request, lambda status: answer.done() or answer.set_result(status))
        return await answer

    def _end(self, status: int) -> None:
        done, self.done = self.done, None
        if done is not None:
            done(status)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.expected is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            at = head.index(b"content-length:") + 15
            self.expected = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            self.status, self.head = int(head[9:12]), head
        if len(self.buffer) >= self.expected:
            del self.buffer[: self.expected]
            self.expected = None
            self._end(self.status)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(0)


async def closed(connections: list[Connection], made: list[bytes], seconds: float):
    """(times in seconds, statuses) of what was sent within `seconds`."""
    times: list[float] = []
    statuses: list[int] = []
    until = time.perf_counter() + seconds
    numbers = iter(range(10**9))

    async def client(connection: Connection) -> None:
        while (started := time.perf_counter()) < until:
            statuses.append(await connection.ask(made[next(numbers) % len(made)]))
            times.append(time.perf_counter() - started)

    await asyncio.gather(*map(client, connections))
    return times, statuses


async def opened(connections: list[Connection], made: list[bytes], seconds: float, rate: float):
    """The same at `rate` requests a second; those that find no free connection wait for one."""
    rng = random.Random(1)
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for connection in connections:
        free.put_nowait(connection)
    times: list[float] = []
    statuses: list[int] = []

    async def one(due: float, request: bytes) -> None:
        connection = await free.get()
        statuses.append(await connection.ask(request))
        times.append(time.perf_counter() - due)
        free.put_nowait(connection)

    begun = due = time.perf_counter()
    tasks = []
    while (due := due + rng.expovariate(rate)) < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due, made[len(tasks) % len(made)])))
    await asyncio.gather(*tasks)
    return times, statuses


# All processes of a load are ready to begin in this time.
READY_S = 60

# A number of so many digits makes each text another one, and every request as long as it was made.
DIGITS = 10
MARK = "0" * DIGITS


@dataclass
class Answers:
    """What became of each request sent: all lists of one length.

    ended_s: since the load began. took_s: from when it was due. returns: how often it had been refused
    before. told_s: when to come back, of a refusal; -1 without. by: how a client reads that (0: it does
    not come back, 1: `retry-after-ms`, 2: `Retry-After`).
    """

    ended_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    returns: list[int] = field(default_factory=list)
    told_s: list[float] = field(default_factory=list)
    by: list[int] = field(default_factory=list)


def told_s(head: bytes, by: int) -> float:
    """When to come back, by the head of a refusal in lower case."""
    name = b"\r\nretry-after: " if by == 2 else b"\r\nretry-after-ms: "
    _, found, rest = head.partition(name)
    return float(rest.split(b"\r\n", 1)[0]) / (1 if by == 2 else 1000) if found else -1.0


async def held(
    host: str, port: int, made: list[bytes], seconds: float, rate: float, returning: float
) -> Answers:
    """An open load. returning: the share of clients that come back, half by each header, three times
    at most; the others never do."""
    loop = asyncio.get_running_loop()
    rng = random.Random(1)
    free: list[Connection] = []
    answers = Answers()
    parts = [request.rsplit(MARK.encode(), 1) for request in made]

    def record(due: float, status: int, head: bytes, returns: int, by: int) -> float:
        now = time.perf_counter()
        told = told_s(head, by) if status == 503 else -1.0
        answers.ended_s.append(now - begun)
        answers.took_s.append(now - due)
        answers.status.append(status)
        answers.returns.append(returns)
        answers.told_s.append(told)
        answers.by.append(by)
        return told

    def open_one() -> Connection | None:
        while free:
            if not (connection := free.pop()).transport.is_closing():
                return connection
        return None

    async def ask(due: float, request: bytes, returns: int, by: int) -> float:
        connection, status = open_one(), 0
        try:
            if connection is None:
                connection = (await loop.create_connection(Connection, host, port))[1]
            status = await connection.ask(request)
        except OSError:
            pass
        if status and connection:
            free.append(connection)
        return record(due, status, connection.head if connection else b"", returns, by)

    async def client(due: float, request: bytes, by: int) -> None:
        told = await ask(due, request, 0, by)
        for returns in (1, 2, 3):
            if not by or told < 0:
                return
            due = time.perf_counter() + told
            await asyncio.sleep(told)
            told = await ask(due, request, returns, by)

    def once(due: float, request: bytes) -> bool:
        """One that does not come back, on a connection that is open, without a task; False without."""
        if (connection := open_one()) is None:
            return False

        def done(status: int) -> None:
            waiting.discard(connection)
            if status:
                free.append(connection)
            record(due, status, connection.head, 0, 0)

        waiting.add(connection)
        connection.send(request, done)
        return True

    begun = due = time.perf_counter()
    waiting: set[Connection] = set()
    under_way: set[asyncio.Task[None]] = set()
    for number in range(10**DIGITS):
        if (due := due + rng.expovariate(rate)) > begun + seconds:
            break
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        head, tail = parts[number % len(parts)]
        request = b"%s%0*d%s" % (head, DIGITS, number, tail)
        by = rng.choice((1, 2)) if rng.random() < returning else 0
        if by or not once(due, request):
            task = loop.create_task(client(due, request, by))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    while waiting:  # noqa: ASYNC110 - once, in the end
        await asyncio.sleep(0.05)
    while under_way:
        await asyncio.wait(under_way)
    return answers


@dataclass
class Sent:
    """What one process sent: times in seconds, statuses, how long that took, and its processor time."""

    times: list[float]
    statuses: list[int]
    seconds: float
    cpu_s: float


async def run(arguments: argparse.Namespace, begin: Callable[[], object]) -> Sent:
    """begin: called when all is ready; returns when all processes are."""
    host, port, made = prepared(arguments)
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(Connection, host, port))[1] for _ in range(arguments.clients)
    ]
    begin()
    cpu = time.process_time()
    started = time.perf_counter()
    if arguments.rate:
        times, statuses = await opened(connections, made, arguments.seconds, arguments.rate)
    else:
        times, statuses = await closed(connections, made, arguments.seconds)
    return Sent(times, statuses, time.perf_counter() - started, time.process_time() - cpu)


def prepared(arguments: argparse.Namespace) -> tuple[str, int, list[bytes]]:
    """Host, port, and the requests."""
    url = urlsplit(arguments.url)
    host, port = url.hostname or "127.0.0.1", url.port or 80
    count = max(arguments.texts * 64, 2048)
    headers = dict(h.split("=", 1) for h in arguments.header)
    texts = sentences(count, arguments.seed)
    if arguments.record:
        texts = [f"{text} {MARK}" for text in texts]
    made = [
        request
        for caller in range(arguments.callers)
        for request in requests(
            f"{host}:{port}", url.path, texts[caller :: arguments.callers], arguments.texts,
            headers | ({"authorization": f"Bearer {caller}"} if arguments.callers > 1 else {}),
        )
    ]  # fmt: skip
    random.Random(arguments.seed).shuffle(made)
    return host, port, made


def summary(arguments: argparse.Namespace, parts: list[Sent]) -> dict[str, object]:
    times = [t for part in parts for t in part.times]
    statuses = [s for part in parts for s in part.statuses]
    seconds = max(part.seconds for part in parts)
    good = statuses.count(200)
    p50, p90, p99 = np.percentile(times, [50, 90, 99]) * 1000
    return {
        "requests_per_s": good / seconds,
        "texts_per_s": good * arguments.texts / seconds,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "requests": len(times),
        "failed": len(statuses) - good,
        "generator_cpu_us_per_request": sum(p.cpu_s for p in parts) / max(1, len(times)) * 1e6,
        "busiest_generator": max(p.cpu_s / p.seconds for p in parts),
    }


# Of the processes that send one load at once: each begins when all are ready.
_ready: Callable[[], object] = lambda: None  # noqa: E731


def _wait_for(all_ready: Callable[[], object]) -> None:
    global _ready  # noqa: PLW0603  of a process that does nothing else
    _ready = all_ready


def _part(arguments: argparse.Namespace, part: int, parts: int) -> Sent:
    """The load of one of several processes: its share of the clients, with texts of its own."""
    own = {
        "clients": arguments.clients // parts + (part < arguments.clients % parts),
        "seed": arguments.seed + 10**6 * part,
        "rate": arguments.rate / parts,
    }
    return uvloop.run(run(argparse.Namespace(**vars(arguments) | own), _ready))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """A closed or open load, from as many processes as are asked for and have a client to be."""
    parts = min(arguments.processes, arguments.clients)
    forked = multiprocessing.get_context("fork")
    ready = partial(forked.Barrier(parts).wait, READY_S)
    with forked.Pool(parts, _wait_for, (ready,)) as pool:
        each = [pool.apply_async(_part, (arguments, part, parts)) for part in range(parts)]
        return summary(arguments, [one.get() for one in each])


async def recorded(arguments: argparse.Namespace) -> dict[str, object]:
    host, port, made = prepared(arguments)
    cpu = time.process_time()
    answers = await held(host, port, made, arguments.seconds, arguments.rate, arguments.returning)
    with arguments.record.open("wb") as file:
        np.savez(file, **vars(answers))
    spent = time.process_time() - cpu
    sent = len(answers.status)
    return {"requests": sent, "generator_cpu_us_per_request": spent / max(1, sent) * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "url", help="of the route, e.g. http://127.0.0.1:8080/v1/embeddings; -: lines of arguments come "
        "on standard input, each a list in JSON"
    )  # fmt: skip
    parser.add_argument("--clients", type=int, default=1, help="connections")
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: closed loop")
    parser.add_argument("--seed", type=int, default=os.getpid(), help="of the texts")
    parser.add_argument("--header", action="append", default=[], help="name=value")
    parser.add_argument(
        "--callers", type=int, default=1, help="clients to the server, by credentials"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="that the clients are divided among"
    )
    parser.add_argument("--record", type=Path, help="with --rate: hold the load, write all answers")
    parser.add_argument("--returning", type=float, default=0.0, help="share that comes back")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 65_536)), hard))
    if arguments.url != "-":
        print(
            json.dumps(uvloop.run(recorded(arguments)) if arguments.record else measure(arguments))
        )
        return
    for line in sys.stdin:
        print(json.dumps(measure(parser.parse_args(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()

"""A load generator in a process of its own: `python -m benchmarks.load URL --clients 64 --texts 1`.

Requests are bytes made beforehand and answers are not parsed beyond their length, so that it takes some
30 us of processor time a request and is not what limits a server. Closed loop: each client sends when its last
answer has come. Open loop (`--rate`): requests start by a Poisson process whether answers come or not, and times
count from when a request was due, so that a stall is seen by all that it delays. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import time
from urllib.parse import urlsplit

import numpy as np
import uvloop

from mexma.sample import tatoeba_sample


def sentences(count: int, seed: int = 0) -> list[str]:
    """A length mix: short sentences, every eighth made of four. No two are equal, so that nothing is
    computed once for two requests."""
    rng = random.Random(seed)
    pool = [s.text for s in tatoeba_sample()]
    return [
        " ".join(rng.sample(pool, 4 if i % 8 == 0 else 1)) + f" {seed}{i}" for i in range(count)
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
        self.answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    async def ask(self, request: bytes) -> int:
        """The status of the answer; 0 when the connection was cut."""
        self.answer = self.loop.create_future()
        self.transport.write(request)
        return await self.answer

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.expected is None:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            at = head.index(b"content-length:") + 15
            self.expected = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            self.status = int(head[9:12])
        if len(self.buffer) >= self.expected:
            del self.buffer[: self.expected]
            self.expected = None
            if self.answer is not None and not self.answer.done():
                self.answer.set_result(self.status)

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(0)


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


async def run(arguments: argparse.Namespace) -> dict[str, object]:
    url = urlsplit(arguments.url)
    host, port = url.hostname or "127.0.0.1", url.port or 80
    count = max(arguments.texts * 64, 2048)
    headers = dict(h.split("=", 1) for h in arguments.header)
    made = requests(
        f"{host}:{port}", url.path, sentences(count, arguments.seed), arguments.texts, headers
    )
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(Connection, host, port))[1] for _ in range(arguments.clients)
    ]
    cpu = time.process_time()
    started = time.perf_counter()
    if arguments.rate:
        times, statuses = await opened(connections, made, arguments.seconds, arguments.rate)
    else:
        times, statuses = await closed(connections, made, arguments.seconds)
    seconds = time.perf_counter() - started
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
        "generator_cpu_us_per_request": (time.process_time() - cpu) / max(1, len(times)) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of the route, e.g. http://127.0.0.1:8080/v1/embeddings")
    parser.add_argument("--clients", type=int, default=1, help="connections")
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: closed loop")
    parser.add_argument("--seed", type=int, default=os.getpid(), help="of the texts")
    parser.add_argument("--header", action="append", default=[], help="name=value")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    print(json.dumps(uvloop.run(run(arguments))))


if __name__ == "__main__":
    main()

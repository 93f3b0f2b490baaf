"""Every reader of bytes that this project did not write itself, and what it may do with them.

Each is a context that makes it ready and gives a function: it takes what a strategy drew and returns if
that was read or refused as documented. Whatever it raises is a finding.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from hypothesis import strategies as st
from starlette.testclient import TestClient

from mexma.artifact import MANIFEST, read_manifest
from mexma.errors import ArtifactError, EngineError, InputError, KeyFileError, StoreCorrupt
from mexma.text import TextTokenizer
from service.app import create_app
from service.caller import caller_of
from service.connection import Connections, protocol
from service.engine.embedder import Embedder
from service.http_errors import STATUS_MEANINGS
from service.metrics import Metrics
from service.security.keys import new_key, read_keys
from service.settings import Settings
from service.store import backups, durable, wal
from service.store.backups import Backups
from service.store.cursors import Cursors
from service.store.filters import parse
from service.store.folders import ROLES, SUCCEEDS, place_of
from service.store.local import LocalStore
from service.store.protocol import Document
from service.workers.arena import Arena
from service.workers.engine_socket import WorkerConnection
from service.workers.remote import RemoteBatcher, _Connection
from service.workers.wire import DONE, FRAME, JOB, MAX_FRAME_BYTES, REFUSED, Kind, Submission
from tests.fakes import FakeEncoder, byte_tokenizer_json
from tests.fuzz.damage import VALUES, changed, damaged, json_bytes

Check = Callable[[Any], None]


@dataclass(frozen=True)
class Parser:
    """inputs: what it is fed with. ready: gives the function that feeds it. price: of one example,
    relative to the cheap ones'."""

    inputs: st.SearchStrategy[Any]
    ready: Callable[[], AbstractContextManager[Check]]
    price: int = 1


PARSERS: dict[str, Parser] = {}


def parser(inputs: st.SearchStrategy[Any], *, price: int = 1) -> Callable[[Any], Any]:
    """Register a generator function as a parser of its name."""

    def register(ready: Callable[[], Iterator[Check]]) -> Any:
        PARSERS[ready.__name__] = Parser(inputs, contextmanager(ready), price)
        return ready

    return register


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def application() -> Iterator[Any]:
    with folder() as data:
        settings = Settings(demo=False, canary_every_s=0, data_dir=data, body_timeout_s=2)
        yield create_app(settings, encoder=FakeEncoder(), store=LocalStore(data))


REQUESTS: dict[str, list[Any]] = {
    "POST /v1/embeddings": [
        {"input": ["one", "two"], "encoding_format": "base64", "dimensions": 3, "partial": True},
        {"input": [[5, 6], [7]], "truncate": False, "model": "x", "user": "y"},
        {"input": "text"},
    ],
    "POST /similarity": [{"inputs": {"source_sentence": "a", "sentences": ["b"]}}],
    "POST /tokenize": [{"inputs": ["one"], "add_special_tokens": False}],
    "POST /embed": [{"inputs": ["one"], "truncate": True, "truncation_direction": "Left"}],
    "POST /embed_all": [{"inputs": ["one", "two"], "truncate": False}, {"inputs": [[5, 6], [7]]}],
    "POST /v1/align": [
        {"source": "one two", "target": "yksi kaksi", "method": "argmax", "model": "x"},
        {"source": ["one", "猫 e\u0301"], "target": ["yksi", "cat"], "truncate": True},
    ],
    "POST /v1/collections/c/documents": [
        {"documents": [{"id": "1", "text": "x", "lang": "fi", "metadata": {"a": [1, {"b": None}]}}]}
    ],
    "DELETE /v1/collections/c/documents": [{"ids": ["1"]}, {"languages": ["fi"]}],
    "POST /v1/collections/c/documents/count": [{"filter": {"field": "a", "gte": 3}}],
    "POST /v1/collections/c/documents/scroll": [{"limit": 1, "cursor": "AAAA"}],
    "POST /v1/collections/c/search": [
        {"queries": ["x"], "k": 3, "per_language": True, "score": "margin", "explain": True},
        {"vectors": [[0.5] * 16], "mutual": True, "query_language": "fi", "score_threshold": 0.1},
        {"queries": ["x"], "filter": {"and": [{"field": ["a", "b"], "in": [1, None]}]}},
    ],
    "POST /v1/collections/c/migration": [{"model": "fake"}],
}


@parser(
    st.one_of([st.tuples(st.just(r), json_bytes(bodies)) for r, bodies in REQUESTS.items()]),
    price=10,
)
def json_body() -> Iterator[Check]:
    """A body of each route that takes one."""
    with application() as app, TestClient(app) as client:
        client.put("/v1/collections/c")
        documents = {"documents": [{"id": "0", "text": "kept", "metadata": {"a": 4}}]}
        client.post("/v1/collections/c/documents", json=documents)

        def check(drawn: tuple[str, bytes]) -> None:
            method, path = drawn[0].split()
            headers = {"content-type": "application/json"}
            answer = client.request(method, path, content=drawn[1], headers=headers)
            assert answer.status_code == 200 or answer.status_code in STATUS_MEANINGS
            assert answer.status_code < 500, answer.text
            assert answer.json() is not None
            assert len(answer.content) < 100_000 + 10 * len(drawn[1])

        yield check


RAW = [
    b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b'content-length: 14\r\n\r\n{"input": "x"}',
    b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    b'f\r\n{"inputs": "x"}\r\n0\r\nx-trailing: 1\r\n\r\n',
    b"GET /v1/collections/c%2f..%00/documents/%ff?k=1&k=2 HTTP/1.1\r\nhost: x\r\nx-request-id: 1\r\n\r\n",
    b"GET /health/live HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\nexpect: 100-continue\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nconnection: keep-alive\r\nx-lane: bulk\r\nx-timeout-ms: 1\r\n\r\n",
]  # fmt: skip


@parser(st.lists(damaged(RAW), min_size=1, max_size=3), price=10)
def http() -> Iterator[Check]:
    """What comes over a connection, to a real server."""
    among = Connections(header_timeout_s=0.5, write_timeout_s=0.5, maximum=100)
    with application() as app:
        config = uvicorn.Config(
            app, http=protocol(among), ws="none", loop="uvloop", log_config=None
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def check(pieces: list[bytes]) -> None:
            client = socket.create_connection(listener.getsockname(), 20)
            with client, suppress(ConnectionError):
                for piece in pieces:
                    client.sendall(piece)
                with suppress(OSError):  # it was refused before its end
                    client.shutdown(socket.SHUT_WR)
                said = b""
                while part := client.recv(2**16):
                    said += part
                assert not said or said.startswith(b"HTTP/1.1 ")
                assert b"HTTP/1.1 500 " not in said, said
            assert thread.is_alive()

        try:
            yield check
        finally:
            server.should_exit = True
            thread.join()


HEADERS = st.dictionaries(
    st.sampled_from([b"x-lane", b"x-timeout-ms", b"authorization", b"x-user"]),
    damaged([b"interactive", b"bulk", b"1000", b"Bearer x"]) | st.binary(max_size=9),
)


@parser(st.tuples(HEADERS, st.sampled_from(["", "x-user"])))
def caller() -> Iterator[Check]:
    """The headers that say who asks."""

    def check(drawn: tuple[dict[bytes, bytes], str]) -> None:
        with suppress(InputError):
            caller_of({"type": "http", "headers": []}, drawn[0], client_header=drawn[1])

    yield check


class Wire(asyncio.Transport):
    """A transport that only remembers whether it was closed."""

    closed = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def frame(kind: int, payload: bytes, size: int | None = None) -> bytes:
    return FRAME.pack(len(payload) if size is None else size, kind) + payload


NUMBERS = st.sampled_from([0, 1, 2, 64, 4096, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
SUBMISSIONS = st.builds(
    Submission, NUMBERS, NUMBERS | st.just(2**64 - 1), NUMBERS, NUMBERS,
    st.sampled_from(["interactive", "bulk"]), st.floats(),
    st.integers(-(2**63), 2**63 - 1), st.binary(max_size=9),
)  # fmt: skip
OBSERVED = [
    ["answered", {"route": "/x", "status": 200, "seconds": 0.1}],
    ["embedded", {"items": 1, "tokens": 2, "truncated": 0,
                  "tokenize_s": 0.1, "queue_s": 0.1, "inference_s": 0.1}],
    ["language", {"name": "fi"}], ["refusal", {"reason": "no_key"}], ["render", {}], ["__init__", {}],
]  # fmt: skip
TO_ENGINE = st.one_of(
    SUBMISSIONS.map(lambda s: frame(Kind.SUBMIT, s.pack())),
    NUMBERS.map(lambda n: frame(Kind.CANCEL, JOB.pack(n))),
    changed([OBSERVED]).map(lambda v: frame(Kind.OBSERVED, json.dumps(v).encode())),
    st.builds(frame, st.integers(0, 255), st.binary(max_size=60), st.none() | NUMBERS),
    damaged([frame(Kind.CANCEL, JOB.pack(1)), frame(Kind.OBSERVED, b"[]")]),
)


async def feed(connection: Any, pieces: list[bytes]) -> None:
    connection.connection_made(Wire())
    for piece in pieces:
        if not connection.open:
            break
        connection.data_received(piece)
        assert len(connection._buffer) <= MAX_FRAME_BYTES + FRAME.size + len(piece)
    await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)


@parser(st.lists(TO_ENGINE, max_size=6), price=3)
def worker_to_engine() -> Iterator[Check]:
    """What the engine's process is told by one that speaks HTTP."""
    encoder = FakeEncoder()

    def check(pieces: list[bytes]) -> None:
        async def main() -> None:
            embedder = Embedder(encoder, Settings(demo=False), Metrics())
            embedder.batcher.start()
            arena = Arena.create(4096)
            np.frombuffer(arena.memory, np.int32)[:] = 1
            await feed(WorkerConnection(embedder, embedder.metrics, arena), pieces)
            await embedder.stop()

        asyncio.run(main())

    yield check


TO_WORKER = st.one_of(
    changed([{"fingerprint": "x", "dim": 16}]).map(
        lambda v: frame(Kind.HELLO, json.dumps(v).encode())
    ),
    st.tuples(NUMBERS, st.floats(), st.floats(), changed([[[0, "EngineError", "x"]]])).map(
        lambda d: frame(Kind.DONE, DONE.pack(*d[:3]) + json.dumps(d[3]).encode())
    ),
    st.tuples(NUMBERS, st.floats(), st.binary(max_size=20)).map(
        lambda d: frame(Kind.REFUSED, REFUSED.pack(*d[:2]) + d[2])
    ),
    st.builds(frame, st.integers(0, 255), st.binary(max_size=60), st.none() | NUMBERS),
)


@parser(st.lists(TO_WORKER, max_size=6), price=3)
def engine_to_worker() -> Iterator[Check]:
    """What a process that speaks HTTP is told by the engine's: nobody who waits hangs."""

    def check(pieces: list[bytes]) -> None:
        async def main() -> None:
            remote = RemoteBatcher(
                Path("/nowhere"), fingerprint="x", dim=16, mismatch=lambda _: None
            )
            connection = _Connection(remote)
            remote._connection, remote._ready = connection, True
            connection.transport = Wire()
            asked = asyncio.create_task(remote.submit([np.ones(3, np.int64)]))
            await asyncio.sleep(0)
            await feed(connection, pieces)
            await asyncio.wait({asked}, timeout=5)
            assert asked.done()
            asked.exception()
            await remote.stop()
            remote._arena.close()

        asyncio.run(main())

    yield check


CURSORS = Cursors("c.1")


@parser(
    st.text(max_size=40) | damaged([CURSORS.write(7).encode()]).map(lambda b: b.decode("latin-1"))
)
def cursor() -> Iterator[Check]:
    def check(text: str) -> None:
        try:
            assert CURSORS.write(CURSORS.read(text)) == text
        except InputError as error:
            assert len(str(error)) < 400

    yield check


@parser(changed([f["filter"] for r in REQUESTS.values() for f in r if "filter" in f]) | VALUES)
def metadata_filter() -> Iterator[Check]:
    def check(value: Any) -> None:
        try:
            parse(value)
        except InputError as error:
            assert len(str(error)) < 2000

    yield check


def _file(name: str, read: Callable[[Path], object], refuses: type[Exception]) -> Iterator[Check]:
    """A file in a folder of its own; read: gets the folder."""
    with folder() as place:

        def check(content: bytes) -> None:
            (place / name).write_bytes(content)
            with suppress(refuses):
                read(place)

        yield check


_, KEY = new_key("somebody", "read")
KEYS = {"keys": [{**vars(KEY), "expires": 5.0, "tokens_per_minute": 9}]}


@parser(json_bytes([KEYS]))
def key_file() -> Iterator[Check]:
    yield from _file("keys.json", lambda place: read_keys(place / "keys.json"), KeyFileError)


@parser(json_bytes([json.loads(FakeEncoder().manifest.to_json())]))
def artifact_manifest() -> Iterator[Check]:
    def read(place: Path) -> None:
        manifest = read_manifest(place)
        assert manifest.to_json()

    yield from _file(MANIFEST, read, ArtifactError)


@parser(json_bytes([json.loads(byte_tokenizer_json())]), price=3)
def tokenizer() -> Iterator[Check]:
    def check(content: bytes) -> None:
        try:
            made = TextTokenizer(content, max_tokens=64)
        except ValueError:
            return
        with suppress(InputError, EngineError):
            made.encode(["any text"])

    yield check


@contextmanager
def backed_up() -> Iterator[Path]:
    """A store with a collection and a backup of it; gives the backup."""
    with folder() as root:
        store = LocalStore(root)
        store.create("c", 4, "f" * 16)
        documents = [Document(id=str(i), text="x", lang="fi", metadata={"n": i}) for i in range(9)]
        store.upsert("c", documents, np.eye(9, 4, dtype=np.float32) + 0.1, "f" * 16)
        made = store.back_up("c")
        store.close()
        yield Backups(root, "c").find(made.id)


@parser(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.binary(max_size=64)), price=3)
def backup() -> Iterator[Check]:
    """A backup any of whose files is damaged is restored whole or not at all."""
    with backed_up() as whole:
        files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())

        def check(drawn: tuple[int, int, bytes]) -> None:
            which, at, content = drawn
            with folder() as place:
                shutil.copytree(whole, place / "b")
                (place / "new").mkdir()
                damaged_file = place / "b" / files[which % len(files)]
                data = bytearray(damaged_file.read_bytes())
                at %= len(data) + 1
                data[at : at + len(content)] = content
                damaged_file.write_bytes(data)
                same = data == (whole / files[which % len(files)]).read_bytes()
                try:
                    backups.unpack(place / "b", place / "new")
                except StoreCorrupt:
                    return
                assert same or not files[which % len(files)].match("*.sqlite")

        yield check


def _backup_manifests() -> st.SearchStrategy[Any]:
    described = {
        "id": "20261126T000000Z-00000000", "collection": "c", "created_at": "2026", "count": 1, "dim": 4,
        "fingerprint": "f", "bytes": 1, "schema": 1, "files": {"documents.sqlite": "0" * 64},
    }  # fmt: skip
    return changed([described, described | {"files": {"../outside": "0" * 64}}])


@parser(_backup_manifests())
def backup_manifest() -> Iterator[Check]:
    """One that carries its own right hash and says anything."""
    with folder() as place:
        (place / "outside").write_bytes(b"not of the backup")

        def check(content: Any) -> None:
            for name in ("b", "new"):
                shutil.rmtree(place / name, ignore_errors=True)
                (place / name).mkdir()
            durable.write_manifest(place / "b" / backups.MANIFEST, content)
            for read in (
                lambda: backups.verify(place / "b"),
                lambda: backups.unpack(place / "b", place / "new"),
            ):
                with suppress(StoreCorrupt):
                    read()
            assert {p.name for p in place.iterdir()} == {"outside", "b", "new"}

        yield check


ROLE_FILES = changed([{"serving": "c.1", "other": "c.2"}, {"folders": ["c.1"]}])


@parser(st.tuples(st.sampled_from([ROLES, SUCCEEDS]), ROLE_FILES, st.booleans()))
def roles() -> Iterator[Check]:
    """Which of two folders is the collection."""
    with folder() as place:

        def check(drawn: tuple[str, Any, bool]) -> None:
            name, content, alone = drawn
            shutil.rmtree(place)
            folders = [place / "c.1", place / "c.2"]
            for one in folders:
                one.mkdir(parents=True)
            durable.write_manifest(folders[1] / name, content)
            found = place_of(folders[1:] if alone else folders)
            assert found is None or found.serving in folders

        yield check


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """A write-ahead log whose header has a right checksum, however little it makes sense."""
    magic = draw(st.sampled_from([*wal.MAGIC, 0]))
    page = draw(st.sampled_from([0, 1, 4, 512, 4096, 65536, 2**32 - 1]) | st.integers(0, 600))
    head = struct.pack(">6I", magic, 3007000, page, 0, 1, 2)
    sums = wal._sum(head, wal.MAGIC.get(magic, "<"), (0, 0))
    frames = b"".join(
        draw(
            st.lists(
                st.binary(max_size=700) | st.just(struct.pack(">6I", 1, 1, 1, 2, 0, 0)), max_size=5
            )
        )
    )
    return head + struct.pack(">2I", *sums) + frames


@parser(logs() | st.binary(max_size=80))
def write_ahead_log() -> Iterator[Check]:
    yield from _file("db-wal", lambda place: wal.check(place / "db"), StoreCorrupt)

"""The store and its peers behind one interface, each in a process of its own.

    Worker(name, folder)     starts a process; `ask` calls a method of its engine
    ENGINES                  what there is, by name

A process of its own, so that the memory of each is its own, and so that no library's threads
disturb another's.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from benchmarks.store_engine import BUILD_WIDTH, LINKS, Engine, marks, memory_mb
from benchmarks.store_libraries import FaissFlat, FaissHnsw, Hnswlib, Usearch
from service.__main__ import SWITCH_INTERVAL_S
from service.store.filters import Exists
from service.store.local import LocalStore
from service.store.protocol import Document, Query

SNAPSHOT_SECONDS = 60  # so long at most are searches measured beside one
TEXT = "A sentence of some length."


class Store(Engine):
    """The whole store: texts, metadata, SQLite, and an answer that is read from it. Its width is the
    recall that it is asked for, in %."""

    widths = (90, 93, 95, 96, 97, 98, 99)

    durable = "on disk (one sync for all writes that come at one time), whole or not there"

    def fill(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the service does
        self.store = LocalStore(self.folder / "store", index_memory_bytes=16 << 30)
        self.store.create("c", self.dim, "encoder")
        there = self.store.describe("c").count  # where an earlier run was stopped
        texts = json.loads((self.folder / "texts.json").read_text()) if there < self.rows else []
        chosen = marks(self.rows)
        for start in range(there, self.rows, 1_000):
            end = min(start + 1_000, self.rows)
            documents = [
                Document(str(n), *texts[n], {mark: True for mark, has in chosen.items() if has[n]})
                for n in range(start, end)
            ]
            self.store.upsert("c", documents, np.array(self.vectors[start:end]), "encoder")
            self.progress(end)
        self.store.settle()

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        query = Query(k=k, filter=Exists((mark,)) if mark else None, recall=width / 100)
        found = self.store.search("c", queries, query, "encoder")
        return [[int(hit.id) for hit in hits] for hits in found]

    def prepare_writes(self) -> None:
        self.store.create("w", self.dim, "encoder")

    def write(self, caller: int, first: int, documents: int) -> None:
        some = [Document(f"{caller} {first + i}", TEXT, "en") for i in range(documents)]
        self.store.upsert("w", some, np.array(self.vectors[:documents]), "encoder")

    def forget_writes(self) -> None:
        self.store.drop("w")

    def state(self) -> str:
        return str(self.store.describe("c").index_state)

    def latencies(self, queries: Any, disturbed: bool) -> list[float]:
        """ms of each search, one at a time; disturbed: while 1,000 documents/s are written in writes of
        50, and snapshots are taken, for as long as the first of these takes."""
        over, whole, written = threading.Event(), threading.Event(), [0]

        def write() -> None:
            began = time.perf_counter()
            while not over.wait(max(0, began + written[0] / 1_000 - time.perf_counter())):
                n = written[0]
                documents = [Document(f"new {n + i}", "A new text.", "en") for i in range(50)]
                first = n % (self.rows - 50)
                some = np.array(self.vectors[first : first + 50]) + np.float32(0.01)
                self.store.upsert("c", documents, some, "encoder")
                written[0] += 50

        def back_up() -> None:
            while not over.is_set():
                self.store.remove_backup("c", self.store.back_up("c").id)
                whole.set()

        threads = [threading.Thread(target=work) for work in (write, back_up)] if disturbed else []
        for thread in threads:
            thread.start()
        took: list[float] = []
        began = time.perf_counter()
        while len(took) < len(queries) or (
            disturbed and not whole.is_set() and time.perf_counter() < began + SNAPSHOT_SECONDS
        ):
            start = time.perf_counter()
            self.store.search("c", queries[len(took) % len(queries)][None], Query(), "encoder")
            took.append(1_000 * (time.perf_counter() - start))
        self.written_per_second = written[0] / (time.perf_counter() - began)
        over.set()
        for thread in threads:
            thread.join()
        self.store.delete("c", [f"new {n}" for n in range(written[0])])
        self.store.settle()
        return took

    def written(self) -> float:
        """Documents a second, while latencies were measured."""
        return self.written_per_second


class MilvusLite(Engine):
    """A server of its own, over gRPC, as its clients use it. Its memory is the server's."""

    widths = FaissHnsw.widths
    durable = "in its log, which is not synced: safe from a killed process, not from a power cut"

    def fill(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = self.folder / "milvus"
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder)]
        self.server = subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client = MilvusClient(f"http://127.0.0.1:{port}", timeout=600)
                break
            except MilvusException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        if self.client.has_collection("c"):  # of an earlier run
            self._index()
            return
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        schema.add_field("text", DataType.VARCHAR, max_length=1_000)
        for mark in marks(1):
            schema.add_field(mark, DataType.BOOL)
        self.client.create_collection("c", schema=schema, consistency_level="Strong")
        texts = json.loads((self.folder / "texts.json").read_text())
        chosen = marks(self.rows)
        for start in range(0, self.rows, 2_000):
            end = min(start + 2_000, self.rows)
            self.client.insert(
                "c",
                [
                    {
                        "id": n,
                        "vector": np.array(self.vectors[n]),
                        "text": texts[n][0],
                        **{mark: bool(has[n]) for mark, has in chosen.items()},
                    }
                    for n in range(start, end)
                ],
            )
            self.progress(end)
        self._index()

    def _index(self) -> None:
        """Its client asks for one again when its connection was cut meanwhile, as it is by the server for
        the client's own pings in the minutes that a million rows take: one that is there is good."""
        index = MilvusClient.prepare_index_params()
        parameters = {"M": LINKS, "efConstruction": BUILD_WIDTH}
        index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=parameters)
        if not self.client.list_indexes("c"):
            try:
                self.client.create_index("c", index)
            except MilvusException as error:
                if "already exists" not in str(error):
                    raise
        self.client.load_collection("c")

    def memory(self) -> float:
        return memory_mb(self.server.pid) if hasattr(self, "server") else 0.0

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        found = self.client.search(
            "c",
            queries.tolist(),
            limit=k,
            filter=f"{mark} == true" if mark else "",
            output_fields=["text"],
            search_params={"params": {"ef": width}},
        )
        return [[hit["id"] for hit in hits] for hits in found]

    def prepare_writes(self) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, max_length=100, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dim)
        schema.add_field("text", DataType.VARCHAR, max_length=1_000)
        self.client.create_collection("w", schema=schema)

    def write(self, caller: int, first: int, documents: int) -> None:
        some = [
            {"id": f"{caller} {first + i}", "vector": np.array(self.vectors[i]), "text": TEXT}
            for i in range(documents)
        ]
        self.client.upsert("w", some)

    def forget_writes(self) -> None:
        self.client.drop_collection("w")

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait(30)


ENGINES: dict[str, type[Engine]] = {
    "store": Store,
    "FAISS Flat": FaissFlat,
    "FAISS HNSW": FaissHnsw,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "Milvus Lite": MilvusLite,
}


def _serve(name: str, folder: Path, pipe: Any) -> None:
    engine = ENGINES[name](folder)
    while (request := pipe.recv()) is not None:
        method, arguments = request
        try:
            pipe.send((True, getattr(engine, method)(*arguments)))
        except Exception as error:  # noqa: BLE001 told to whoever asked
            pipe.send((False, repr(error)))
    if hasattr(engine, "stop"):
        engine.stop()


class Worker:
    def __init__(self, name: str, folder: Path):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, folder, theirs))
        self._process.start()

    def ask(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        good, answer = self._pipe.recv()
        if not good:
            raise RuntimeError(f"{self.name}.{method}: {answer}")
        return answer

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join(60)

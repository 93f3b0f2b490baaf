"""The store and its peers behind one interface, each in a process of its own.

    Worker(name, folder)     starts a process; `ask` calls a method of its engine
    ENGINES                  what there is, by name

A process of its own, so that the memory of each is its own, and so that no library's threads
disturb another's. An engine is built from FOLDER/vectors.npy (float32 `[n, dim]`, unit rows) and
FOLDER/texts.json, and answers with row numbers.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

THREADS = len(os.sched_getaffinity(0))
LINKS, BUILD_WIDTH = 32, 100  # of each graph, as the store's own was


def memory_mb(pid: int | str = "self") -> float:
    """Memory of a process that is its own: not the files it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kb] = [line.split()[1] for line in status if line.startswith("RssAnon")]
    return int(kb) / 1024


class Engine:
    """width: how hard an approximate search tries, in the engine's own unit; 0 its default."""

    widths: tuple[int, ...] = (0,)
    filters = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.rows, self.dim = self.vectors.shape

    def build(self) -> dict[str, float]:
        """Seconds and MB that it took."""
        import faiss

        faiss.omp_set_num_threads(THREADS)
        before, began = memory_mb(), time.perf_counter()
        self.fill()
        took = time.perf_counter() - began
        ctypes.CDLL(None).malloc_trim(0)
        return {"seconds": took, "mb": self.memory() - before}

    def memory(self) -> float:
        return memory_mb()

    def fill(self) -> None:
        raise NotImplementedError

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        """mark: only rows that carry it, see `marks`."""
        raise NotImplementedError

    def timed(
        self, queries: Any, k: int, width: int, batch: int, mark: str = ""
    ) -> tuple[float, list[list[int]]]:
        """Queries a second in calls of `batch`, and what was found."""
        found: list[list[int]] = []
        began = time.perf_counter()
        for start in range(0, len(queries), batch):
            found += self.search(queries[start : start + batch], k, width, mark)
        return len(queries) / (time.perf_counter() - began), found


def marks(rows: int) -> dict[str, Any]:
    """bool `[rows]` by name: 10 %, 1 % and 0.1 % of the rows."""
    draw = np.random.default_rng(1).random(rows)
    return {"m100": draw < 0.1, "m10": draw < 0.01, "m1": draw < 0.001}


class Store(Engine):
    """The whole store: texts, metadata, SQLite, and an answer that is read from it."""

    def fill(self) -> None:
        from service.store.local import LocalStore
        from service.store.protocol import Document

        self.store = LocalStore(self.folder / "store", index_memory_bytes=16 << 30)
        if not self.store.list():
            self.store.create("c", self.dim, "encoder")
            texts = json.loads((self.folder / "texts.json").read_text())
            chosen = marks(self.rows)
            for start in range(0, self.rows, 1_000):
                end = min(start + 1_000, self.rows)
                documents = [
                    Document(
                        str(n), *texts[n], {mark: True for mark, has in chosen.items() if has[n]}
                    )
                    for n in range(start, end)
                ]
                self.store.upsert("c", documents, np.array(self.vectors[start:end]), "encoder")
        self.store.settle()

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        from service.store.filters import Exists
        from service.store.protocol import Query

        query = Query(k=k, exact=width < 0, filter=Exists((mark,)) if mark else None)
        return [
            [int(h.id) for h in hits] for hits in self.store.search("c", queries, query, "encoder")
        ]

    def state(self) -> str:
        return str(self.store.describe("c").index_state)

    def latencies(self, queries: Any, disturbed: bool) -> list[float]:
        """ms of each search, one at a time; disturbed: while 1,000 documents/s are written, and
        a snapshot is taken."""
        from service.store.protocol import Document, Query

        over, written = threading.Event(), [0]

        def write() -> None:
            began = time.perf_counter()
            while not over.wait(max(0, began + written[0] / 1_000 - time.perf_counter())):
                n = written[0]
                documents = [Document(f"new {n + i}", "A new text.", "en") for i in range(50)]
                some = np.array(self.vectors[n : n + 50]) + np.float32(0.01)
                self.store.upsert("c", documents, some, "encoder")
                written[0] += 50

        threads = [threading.Thread(target=write)]
        threads.append(threading.Thread(target=lambda: self.store.back_up("c")))
        if disturbed:
            for thread in threads:
                thread.start()
        took, began = [], time.perf_counter()
        for query in queries:
            start = time.perf_counter()
            self.store.search("c", query[None], Query(), "encoder")
            took.append(1_000 * (time.perf_counter() - start))
        self.written_per_second = written[0] / (time.perf_counter() - began)
        over.set()
        if disturbed:
            for thread in threads:
                thread.join()
        return took

    def writes(self) -> float:
        return self.written_per_second


class FaissFlat(Engine):
    def fill(self) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(self.dim)
        self.index.add(np.ascontiguousarray(self.vectors))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        import faiss

        parameters = None
        if mark:
            bits = np.packbits(marks(self.rows)[mark], bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        found: list[list[int]] = self.index.search(queries, k, params=parameters)[1].tolist()
        return found


class FaissHnsw(Engine):
    widths = (16, 24, 32, 48, 64, 96, 128, 192, 256)

    def fill(self) -> None:
        import faiss

        self.index = faiss.IndexHNSWFlat(self.dim, LINKS)
        self.index.hnsw.efConstruction = BUILD_WIDTH
        self.index.add(np.ascontiguousarray(self.vectors))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        import faiss

        chosen = {}
        if mark:
            bits = np.packbits(marks(self.rows)[mark], bitorder="little")
            chosen = {"sel": faiss.IDSelectorBitmap(bits)}
        parameters = faiss.SearchParametersHNSW(efSearch=width, **chosen)
        found: list[list[int]] = self.index.search(queries, k, params=parameters)[1].tolist()
        return found


class Hnswlib(Engine):
    widths = FaissHnsw.widths
    filters = False

    def fill(self) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", self.dim)
        self.index.init_index(self.rows, M=LINKS, ef_construction=BUILD_WIDTH)
        self.index.set_num_threads(THREADS)
        self.index.add_items(self.vectors)

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        if mark:
            raise NotImplementedError("its filter calls Python for each row that it looks at")
        self.index.set_ef(width)
        found: list[list[int]] = self.index.knn_query(queries, k)[0].tolist()
        return found


class MilvusLite(Engine):
    """A server of its own, over gRPC, as its clients use it. Its memory is the server's."""

    widths = FaissHnsw.widths

    def fill(self) -> None:
        from pymilvus import DataType, MilvusClient, MilvusException

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
                        "vector": self.vectors[n].tolist(),
                        "text": texts[n][0],
                        **{mark: bool(has[n]) for mark, has in chosen.items()},
                    }
                    for n in range(start, end)
                ],
            )
        index = MilvusClient.prepare_index_params()
        parameters = {"M": LINKS, "efConstruction": BUILD_WIDTH}
        index.add_index("vector", index_type="HNSW", metric_type="COSINE", params=parameters)
        self.client.create_index("c", index)
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

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait(30)


ENGINES: dict[str, type[Engine]] = {
    "store": Store,
    "FAISS Flat": FaissFlat,
    "FAISS HNSW": FaissHnsw,
    "hnswlib": Hnswlib,
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

"""Libraries beside the store: vectors in memory, numbers as answers, and nothing on disk.

hnswlib and usearch are no dependencies of this project: `pip install --target FOLDER hnswlib usearch`
and PYTHONPATH=FOLDER. Each engine is kept in its own file as it was built.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.store_engine import BUILD_WIDTH, LINKS, THREADS, Engine, bits
from service.store.loaded_faiss import faiss

AT_ONCE = 20_000
"""Rows added between two signs of life."""


class FaissFlat(Engine):
    def fill(self) -> None:
        self.index = faiss.IndexFlatIP(self.dim)
        self.index.add(np.ascontiguousarray(self.vectors))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        parameters = None
        if mark:
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits(self.rows, mark)))
        found: list[list[int]] = self.index.search(queries, k, params=parameters)[1].tolist()
        return found


class FaissHnsw(Engine):
    widths = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1_024, 2_048, 4_096)

    def fill(self) -> None:
        file = self.folder / "FaissHnsw.index"
        if file.exists():
            self.index = faiss.read_index(str(file))
            return
        self.index = faiss.IndexHNSWFlat(self.dim, LINKS)
        self.index.hnsw.efConstruction = BUILD_WIDTH
        for start in range(0, self.rows, AT_ONCE):
            self.index.add(np.array(self.vectors[start : start + AT_ONCE]))
            self.progress(start + AT_ONCE)
        faiss.write_index(self.index, str(file))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        chosen = {}
        if mark:
            chosen = {"sel": faiss.IDSelectorBitmap(bits(self.rows, mark))}
        parameters = faiss.SearchParametersHNSW(efSearch=width, **chosen)
        found: list[list[int]] = self.index.search(queries, k, params=parameters)[1].tolist()
        return found


class Hnswlib(Engine):
    widths = FaissHnsw.widths
    filters = False

    def fill(self) -> None:
        hnswlib = import_module("hnswlib")
        self.index = hnswlib.Index("ip", self.dim)
        file = self.folder / "Hnswlib.index"
        if file.exists():
            self.index.load_index(str(file), max_elements=self.rows)
            self.index.set_num_threads(THREADS)
            return
        self.index.init_index(self.rows, M=LINKS, ef_construction=BUILD_WIDTH)
        self.index.set_num_threads(THREADS)
        for start in range(0, self.rows, AT_ONCE):
            self.index.add_items(np.array(self.vectors[start : start + AT_ONCE]))
            self.progress(start + AT_ONCE)
        self.index.save_index(str(file))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        if mark:
            raise NotImplementedError("its filter calls Python for each row that it looks at")
        self.index.set_ef(width)
        found: list[list[int]] = self.index.knn_query(queries, k)[0].tolist()
        return found


class Usearch(Engine):
    """Its own choice of 2 bytes a component (bf16), which the others have no equal of."""

    widths = FaissHnsw.widths
    filters = False

    def fill(self) -> None:
        index = import_module("usearch.index")
        self.index = index.Index(
            ndim=self.dim, metric="ip", dtype="bf16",
            connectivity=LINKS, expansion_add=BUILD_WIDTH,
        )  # fmt: skip
        file = self.folder / "Usearch.index"
        if file.exists():
            self.index.load(str(file))
            return
        for start in range(0, self.rows, AT_ONCE):
            part = np.array(self.vectors[start : start + AT_ONCE])
            self.index.add(np.arange(start, start + len(part)), part, threads=THREADS)
            self.progress(start + AT_ONCE)
        self.index.save(str(file))

    def search(self, queries: Any, k: int, width: int, mark: str = "") -> list[list[int]]:
        if mark:
            raise NotImplementedError("its filter is not to be had in Python")
        self.index.expansion_search = width
        found = self.index.search(queries, k, threads=THREADS).keys
        answer: list[list[int]] = np.atleast_2d(found).tolist()
        return answer

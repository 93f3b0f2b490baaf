"""What only the embedded store promises: its directory, damage, threads, and one process."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import CollectionNotFound, StoreCorrupt, StoreError
from service.store import local
from service.store.local import LocalStore
from service.store.protocol import Document, Query

from .crash_worker import DIM, PRINT, REPOSITORY, vector_of


def filled(root: Path, *names: str, count: int = 60) -> LocalStore:
    store = LocalStore(root, threads=2)
    for name in names:
        texts = [f"text {i} of {name}" for i in range(count)]
        store.create(name, DIM, PRINT)
        documents = [Document(f"d{i}", t, "en", {"i": i}) for i, t in enumerate(texts)]
        store.upsert(name, documents, np.array([vector_of(t) for t in texts]), PRINT)
    return store


def file_of(root: Path, name: str) -> Path:
    [found] = root.glob(f"{name}.*/documents.sqlite")
    return found


def test_a_restart_changes_nothing(tmp_path):
    store = filled(tmp_path, "a", "b")
    store.delete("a", ["d3", "d4"])
    asked = np.array([vector_of("one"), vector_of("two")])
    queries = [Query(), Query(score="margin", k=3), Query(per_language=True, exact=True)]

    def everything(store: LocalStore):
        found = [store.search(n, asked, q, PRINT) for n in "ab" for q in queries]
        return store.list(), found, store.get("a", "d5")

    before = everything(store)
    store.close()
    with pytest.raises(CollectionNotFound):
        store.describe("a")
    with pytest.raises(StoreError, match="closed"):
        store.create("d", 2, PRINT)
    again = LocalStore(tmp_path)
    assert everything(again) == before
    again.close()
    again.close()


def test_a_root_has_one_process_at_a_time(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match="one process at a time"):
        LocalStore(tmp_path)
    program = (
        "import sys, pathlib, service.store.local as l; l.LocalStore(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"{tmp_path} is open in process" in second.stderr
    store.close()
    assert subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0


def test_leftovers_are_removed_and_strangers_left_alone(tmp_path):
    filled(tmp_path, "a").close()
    for leftover in (".new-x.00", ".gone-a.01"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "documents.sqlite").write_bytes(b"half")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    store = LocalStore(tmp_path)
    assert [info.name for info in store.list()] == ["a"]
    assert {p.name for p in tmp_path.iterdir() if p.name[0] != "a"} == {
        ".lock",
        "lost+found",
        "notes.txt",
    }
    store.close()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file: Path) -> None:
    file.write_bytes(b"not a database at all " * 400)


def flip_in_text(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"text 7 of", b"text 6 of"))


def flip_in_vector(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(vector_of("text 7 of a").tobytes()) + 5] ^= 1
    file.write_bytes(content)


def flip_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"encoder"', b'"encodes"'))


def another_database(file: Path) -> None:
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE documents (rid INTEGER PRIMARY KEY)")
    connection.close()


DAMAGES = [empty, halve, overwrite, flip_in_text, flip_in_vector, flip_in_header, another_database]


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_a_damaged_collection_is_refused_and_the_others_served(tmp_path, damage):
    filled(tmp_path, "a", "b").close()
    file = file_of(tmp_path, "a")
    damage(file)
    store = LocalStore(tmp_path)
    states = {info.name: info.index_state for info in store.list()}
    assert states == {"a": "corrupt", "b": "exact"}
    document, vector = Document("d1", "t", "en"), vector_of("t")[None]
    for use in (
        lambda: store.describe("a"),
        lambda: store.get("a", "d1"),
        lambda: store.delete("a", ["d1"]),
        lambda: store.create("a", DIM, PRINT),
        lambda: store.upsert("a", [document], vector, PRINT),
        lambda: store.search("a", vector, Query(), PRINT),
    ):
        with pytest.raises(StoreCorrupt, match=str(file)):
            use()
    assert store.get("b", "d1").text == "text 1 of b"
    store.drop("a")
    assert store.create("a", DIM, PRINT).count == 0
    store.close()
    assert not any(name.is_dir() and name.name[0] == "." for name in tmp_path.iterdir())


def test_any_flipped_bit_is_refused_or_harmless(tmp_path):
    store = filled(tmp_path, "a", count=190)
    asked = vector_of("asked")[None]
    expected = store.search("a", asked, Query(k=200), PRINT), store.describe("a")
    store.close()
    file, choose = file_of(tmp_path, "a"), random.Random(3)
    whole = file.read_bytes()
    refused = 0
    for _ in range(150):
        at, bit = choose.randrange(len(whole)), 1 << choose.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        store = LocalStore(tmp_path)
        [info] = store.list()
        if info.index_state == "corrupt":
            refused += 1
        else:
            assert (store.search("a", asked, Query(k=200), PRINT), info) == expected, at
            assert [store.get("a", f"d{i}").metadata["i"] for i in range(190)] == [*range(190)]
        store.close()
    assert refused > 50, "the rest of the file is free space"


def test_a_newer_schema_is_not_touched(tmp_path):
    filled(tmp_path, "a").close()
    connection = sqlite3.connect(file_of(tmp_path, "a"))
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match="schema 1 at most, got 2"):
        store.describe("a")
    store.close()


def test_a_write_that_fails_leaves_no_trace(tmp_path, monkeypatch):
    """The disk is full in the middle of the second insert of a batch."""
    store = filled(tmp_path, "a", count=2)
    connection = store._open["a"]._database._writer
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    before = store.search("a", vector_of("x")[None], Query(), PRINT)
    documents = [Document(f"d{i}", "x" * 3_000, "fi") for i in range(10)]
    vectors = np.array([vector_of(str(i)) for i in range(10)])
    with pytest.raises(StoreError, match="full"):
        store.upsert("a", documents, vectors, PRINT)
    assert store.search("a", vector_of("x")[None], Query(), PRINT) == before
    assert store.get("a", "d1").text == "text 1 of a"
    connection.execute("PRAGMA max_page_count = 100000")
    assert store.upsert("a", documents, vectors, PRINT) == ["updated"] * 2 + ["created"] * 8
    store.close()


def test_a_create_that_fails_can_be_repeated(tmp_path, monkeypatch):
    """The directory cannot be made durable: as if never created, and its name is not used up."""
    store = LocalStore(tmp_path)

    def fail(directory: Path) -> None:
        if directory == tmp_path:
            raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(local, "sync", fail)
        with pytest.raises(StoreError, match=r"cannot be created.*no space"):
            store.create("a", DIM, PRINT)
    assert store.list() == []
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert store.create("a", DIM, PRINT).count == 0
    store.close()


def test_a_fresh_interpreter_loads_no_torch_and_no_inference_runtime():
    program = "import service.store.local, service.languages, sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnx", "onnxruntime"} & set(loaded.stdout.split())

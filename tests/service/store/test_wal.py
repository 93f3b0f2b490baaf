"""A damaged write-ahead log: acknowledged commits are missed, a torn end is not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import StoreCorrupt
from service.store import wal
from service.store.local import LocalStore
from service.store.protocol import Document, Selection

from .crash_worker import DIM, PRINT, vector_of
from .test_local import file_of

COMMITS = 12


@pytest.fixture
def killed(tmp_path) -> Path:
    """A store as a kill leaves it: some commits in the database, the later ones in the log."""
    store = LocalStore(tmp_path / "live", threads=1)
    store.create("c", DIM, PRINT)
    for n in range(COMMITS):
        documents = [
            Document(f"d{n}-{i}", f"text {n} {i}", "en", {"x": "y" * 900}) for i in range(9)
        ]
        store.upsert("c", documents, np.array([vector_of(d.id) for d in documents]), PRINT)
    shutil.copytree(tmp_path / "live", tmp_path / "killed")
    store.close()
    return tmp_path / "killed"


def log_of(root: Path) -> Path:
    file = file_of(root, "c")
    return file.with_name(file.name + "-wal")


def commits_found(root: Path) -> int:
    store = LocalStore(root, threads=1)
    try:
        count = store.count("c", Selection())
    finally:
        store.close()
    assert count % 9 == 0, "whole commits only"
    return count // 9


def test_an_intact_log_is_replayed(killed):
    wal.check(file_of(killed, "c"))
    assert commits_found(killed) == COMMITS
    assert not log_of(killed).exists()
    wal.check(file_of(killed, "c"))


def test_any_flipped_bit_costs_the_last_commit_at_most_or_is_refused(killed, tmp_path):
    whole, choose, refused = log_of(killed).read_bytes(), random.Random(8), 0
    for n in range(60):
        root = shutil.copytree(killed, tmp_path / f"flip{n}")
        at = choose.randrange(len(whole)) if n > 9 else choose.randrange(wal.HEADER)
        flipped = bytes([whole[at] ^ (1 << choose.randrange(8))])
        log_of(root).write_bytes(whole[:at] + flipped + whole[at + 1 :])
        try:
            assert commits_found(root) >= COMMITS - 1, at
        except StoreCorrupt as error:
            assert str(log_of(root)) in str(error)
            assert log_of(root).exists(), "what is refused is kept"
            refused += 1
        shutil.rmtree(root)
    assert refused > 40


def test_a_torn_end_is_no_damage(killed, tmp_path):
    """Cut anywhere, or its last transaction's pages in disorder: what came before is served."""
    whole, choose = log_of(killed).read_bytes(), random.Random(9)
    for n in range(25):
        root = shutil.copytree(killed, tmp_path / f"cut{n}")
        log_of(root).write_bytes(whole[: choose.randrange(len(whole))])
        assert 0 <= commits_found(root) < COMMITS
        shutil.rmtree(root)
    log_of(killed).write_bytes(whole[:-5_000] + bytes(1_000) + whole[-4_000:])
    assert commits_found(killed) == COMMITS - 1


def test_a_log_that_was_begun_anew_still_has_old_frames_behind(tmp_path):
    store = LocalStore(tmp_path / "live", threads=1)
    store.create("c", DIM, PRINT)
    writer = store._open["c"]._database._writer
    for n in range(30):
        text = f"text {n} " + "x" * 2_000
        store.upsert("c", [Document(f"d{n}", text, "en")], vector_of(text)[None], PRINT)
        if n == 25:
            writer.execute("PRAGMA wal_checkpoint(RESTART)")
    copied = shutil.copytree(tmp_path / "live", tmp_path / "killed")
    store.close()
    wal.check(file_of(copied, "c"))
    again = LocalStore(copied, threads=1)
    assert again.count("c", Selection()) == 30
    again.close()


def test_the_checksum_by_matrices_is_the_one_by_steps():
    content = np.random.default_rng(3).integers(0, 256, 4_104, np.uint8).tobytes()
    for order in "<>":
        words = np.frombuffer(content, f"{order}u4").astype(np.uint32).reshape(-1, 2)
        advance, weights = wal._weights(len(words))
        added = np.stack([words[:, 0], words[:, 0] + words[:, 1]], axis=1)
        start = np.array([5, 7], np.uint32)
        own = (added[:, None, :] * weights).sum(axis=(0, 2), dtype=np.uint32)
        found = (advance * start).sum(axis=1, dtype=np.uint32) + own
        assert tuple(found.tolist()) == wal._sum(content, order, (5, 7))

"""Backups and restores of the embedded store: under load, damaged, without room, and the command."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import BackupNotFound, StoreCorrupt, StoreError, StoreFailed
from service import index_command
from service.priority import FAR_BELOW
from service.store import backups, caretaker, durable, planner
from service.store.database import Database
from service.store.generations import VECTORS
from service.store.local import LocalStore
from service.store.protocol import Document, Query, Selection

from .crash_worker import DIM, PRINT, vector_of
from .test_index import flip
from .test_local import file_of, filled


def everything(store: LocalStore, name: str = "a") -> dict[str, str]:
    page = store.scroll(name, Selection(), 10_000)
    return {d.id: d.text for d in page.documents}


def add(store: LocalStore, texts: dict[str, str], name: str = "a") -> None:
    documents = [Document(id, text, "fi", {"text": text}) for id, text in texts.items()]
    store.upsert(name, documents, np.array([vector_of(t) for t in texts.values()]), PRINT)


def test_a_backup_is_of_one_moment_while_a_writer_writes(tmp_path):
    """Two documents are always written together; every backup holds both from the same write."""
    store, done = filled(tmp_path, "a"), threading.Event()

    def write() -> None:
        n = 0
        while not done.is_set():
            n += 1
            add(store, {"left": f"write {n}", "right": f"write {n}"})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [store.back_up("a") for _ in range(5)]
    finally:
        done.set()
        writer.join()
    for backup in made:
        store.restore("a", backup.id)
        texts = everything(store)
        assert len(texts) == backup.count
        assert texts.get("left") == texts.get("right")
    store.close()


def test_a_backup_gives_way_to_searches(tmp_path, monkeypatch):
    """Its thread is niced, and the one that asked for it stays as it was."""
    seen, copy = [], Database.copy_to

    def noticed(*arguments):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return copy(*arguments)

    monkeypatch.setattr(Database, "copy_to", noticed)
    store, own = filled(tmp_path, "a"), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    store.back_up("a")
    assert seen == [max(own, FAR_BELOW)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    store.close()


def test_searches_go_on_through_a_restore_and_see_the_one_or_the_other(tmp_path):
    store, done, seen = filled(tmp_path, "a"), threading.Event(), set()
    backup = store.back_up("a")
    add(store, {"new": "written after"})
    started = threading.Barrier(2)

    def read() -> None:
        started.wait()
        while not done.is_set():
            [hits] = store.search("a", vector_of("written after")[None], Query(k=1), PRINT)
            seen.add(hits[0].id)
            assert store.count("a", Selection()) in (60, 61)

    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    for _ in range(5):
        store.restore("a", backup.id)
        assert store.count("a", Selection()) == 60
        add(store, {"new": "written after"})
    done.set()
    reader.join()
    assert "new" in seen
    store.close()
    assert len(list(tmp_path.glob("a.*"))) == 1


def test_a_write_that_waits_for_a_restore_goes_into_the_successor(tmp_path, monkeypatch):
    store = filled(tmp_path, "a")
    backup = store.back_up("a")
    renamed, go_on = threading.Event(), threading.Event()

    def stand_still(step: str) -> None:
        if step == "restore: renamed":
            renamed.set()
            assert go_on.wait(60)

    monkeypatch.setattr("service.store.steps.observer", stand_still)
    restoring = threading.Thread(target=store.restore, args=("a", backup.id))
    restoring.start()
    assert renamed.wait(60)
    writing = threading.Thread(target=add, args=(store, {"late": "late"}))
    writing.start()
    go_on.set()
    writing.join()
    restoring.join()
    assert store.get("a", "late").text == "late"
    store.close()
    with closing(LocalStore(tmp_path)) as again:
        assert again.get("a", "late").text == "late"


def test_a_dropped_collection_comes_back(tmp_path):
    store = filled(tmp_path, "a")
    before, backup = everything(store), store.back_up("a")
    store.drop("a")
    assert store.backups("a") == [backup]
    store.restore("a", backup.id)
    assert everything(store) == before
    store.close()


def test_a_damaged_collection_is_restored(tmp_path):
    store = filled(tmp_path, "a")
    before, backup = everything(store), store.back_up("a")
    store.close()
    file_of(tmp_path, "a").write_bytes(b"nothing")
    store = LocalStore(tmp_path)
    with pytest.raises(StoreCorrupt):
        store.describe("a")
    with pytest.raises(StoreCorrupt):
        store.back_up("a")
    assert store.restore("a", backup.id).count == 60
    assert everything(store) == before
    store.close()
    with closing(LocalStore(tmp_path)) as again:
        assert everything(again) == before
    assert len(list(tmp_path.glob("a.*"))) == 1


@pytest.mark.parametrize("file", [backups.DATABASE, backups.MANIFEST])
@pytest.mark.parametrize("how", [flip, Path.unlink, lambda f: f.write_bytes(f.read_bytes()[:-9])])
def test_a_damaged_backup_is_named_and_replaces_nothing(tmp_path, file, how):
    store = filled(tmp_path, "a")
    backup = store.back_up("a")
    add(store, {"new": "new"})
    before = everything(store)
    damaged = tmp_path / "snapshots" / "a" / backup.id / file
    how(damaged)
    with pytest.raises(StoreCorrupt, match=str(damaged)):
        store.restore("a", backup.id)
    assert everything(store) == before
    assert len(list(tmp_path.glob("*a.*"))) == 1, "nothing half made is left"
    assert store.backups("a") == ([] if file == backups.MANIFEST else [backup])
    store.remove_backup("a", backup.id)
    with pytest.raises(BackupNotFound):
        store.restore("a", backup.id)
    store.close()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "index"])
def test_a_backup_that_names_files_elsewhere_is_refused(tmp_path, name):
    """Its manifest has the right hash: somebody made it so."""
    store = filled(tmp_path, "a")
    backup = store.back_up("a")
    before = everything(store)
    manifest = tmp_path / "snapshots" / "a" / backup.id / backups.MANIFEST
    content = durable.read_manifest(manifest)
    content["files"][name] = durable.digest(manifest)
    manifest.unlink()
    durable.write_manifest(manifest, content)
    with pytest.raises(StoreCorrupt, match=name):
        store.restore("a", backup.id)
    assert everything(store) == before
    store.close()


def test_no_room_for_a_backup(tmp_path, monkeypatch):
    store = filled(tmp_path, "a")
    backup = store.back_up("a")
    before = everything(store)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.store.durable.sync", full)
    with pytest.raises(StoreFailed, match="No space left"):
        store.back_up("a")
    monkeypatch.undo()
    monkeypatch.setattr("service.store.durable.write", full)
    with pytest.raises(StoreFailed, match="No space left"):
        store.back_up("a")
    with pytest.raises(StoreFailed, match="No space left"):
        store.restore("a", backup.id)
    monkeypatch.undo()
    assert store.backups("a") == [backup]
    assert len(list((tmp_path / "snapshots" / "a").iterdir())) == 1
    assert everything(store) == before
    add(store, {"new": "new"})
    store.close()


@pytest.mark.parametrize("id", ["", "..", "../a", "x", "20261125T184500Z-5f1c0a9e/.", "/etc"])
def test_ids_are_names_of_backups_and_nothing_else(tmp_path, id):
    store = filled(tmp_path, "a")
    store.back_up("a")
    for use in (store.restore, store.remove_backup):
        with pytest.raises(BackupNotFound):
            use("a", id)
    store.close()


@pytest.fixture
def indexed(tmp_path, monkeypatch) -> LocalStore:
    """A store whose collection "a" has an index on disk."""
    monkeypatch.setattr(planner, "EXACT_ROWS", 20)
    monkeypatch.setattr(caretaker, "TAIL_ROWS", 30)
    store = filled(tmp_path, "a", count=200)
    store.settle()
    return store


def test_the_index_comes_along_and_is_not_needed(indexed, tmp_path, caplog):
    backup = indexed.back_up("a")
    [live] = tmp_path.glob(f"a.*/index/*/{VECTORS}")
    [kept] = tmp_path.glob(f"snapshots/a/*/index/*/{VECTORS}")
    assert live.stat().st_ino == kept.stat().st_ino, "linked"
    indexed.restore("a", backup.id)
    indexed.settle()
    assert indexed.describe("a").index_state == "approximate"
    assert [p.parent.name for p in tmp_path.glob(f"a.*/index/*/{VECTORS}")] == [kept.parent.name]
    flip(kept)
    indexed.restore("a", backup.id)
    indexed.settle()
    assert VECTORS in caplog.text
    assert indexed.describe("a").index_state == "approximate"
    indexed.close()


def command(capsys, *arguments: object) -> str:
    index_command.main([str(a) for a in arguments])
    return capsys.readouterr().out


def test_the_command_verifies_and_names_damage(indexed, tmp_path, capsys):
    indexed.back_up("a")
    said = command(capsys, "--data", tmp_path, "verify")
    assert "a: 200 documents verified" in said, "beside the process that has it open"
    assert said.count("verified") == 3
    indexed.close()
    [index] = tmp_path.glob(f"a.*/index/*/{VECTORS}")
    [backup] = tmp_path.glob(f"snapshots/a/*/{backups.DATABASE}")
    flip(index)
    flip(backup)
    file_of(tmp_path, "a").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as caught:
        command(capsys, "--data", tmp_path, "verify", "a")
    for file in (file_of(tmp_path, "a"), backup):
        assert str(file) in str(caught.value)


def test_the_command_backs_up_beside_a_service_and_restores_without(indexed, tmp_path, capsys):
    id = command(capsys, "--data", tmp_path, "backup", "a").partition(":")[0]
    assert [backup.id for backup in indexed.backups("a")] == [id]
    with pytest.raises(SystemExit, match=r"one process at a time.*stop that service"):
        command(capsys, "--data", tmp_path, "restore", "a", id)
    add(indexed, {"new": "new"})
    indexed.close()
    assert command(capsys, "--data", tmp_path, "restore", "a", id) == "a: 200 documents\n"
    away = shutil.copytree(tmp_path / "snapshots" / "a" / id, tmp_path / "away")
    shutil.rmtree(tmp_path / "snapshots")
    assert command(capsys, "--data", tmp_path, "restore", "a", away) == "a: 200 documents\n"
    with pytest.raises(SystemExit, match="collection 'a', not 'b'"):
        command(capsys, "--data", tmp_path, "restore", "b", away)
    with closing(LocalStore(tmp_path)) as store:
        assert len(everything(store)) == 200


def test_the_command_rebuilds_and_copies(indexed, tmp_path, capsys):
    before = everything(indexed)
    indexed.close()
    [old] = tmp_path.glob("a.*/index/*")
    said = command(capsys, "--data", tmp_path, "rebuild", "a")
    assert said == "a: 200 documents, searched approximate\n"
    assert not old.exists()
    other = tmp_path / "other"
    for _ in range(2):
        said = command(capsys, "--data", tmp_path, "copy", "a", other)
        assert said == f"a: 200 documents in {other}\n"
    with closing(LocalStore(other)) as copy, closing(LocalStore(tmp_path)) as original:
        assert everything(copy) == before
        asked = vector_of("asked")[None]
        found = [s.search("a", asked, Query(exact=True), PRINT) for s in (copy, original)]
        assert found[0] == found[1]
        assert copy.describe("a").dim == DIM


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "nobody"),
        ("backup", "nobody"),
        ("restore", "nobody", "20261125T184500Z-5f1c0a9e"),
        ("rebuild", "nobody"),
        ("copy", "nobody", "elsewhere"),
    ],
)
def test_the_command_says_what_is_not_there(tmp_path, capsys, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled(tmp_path / "data", "a").close()
    with pytest.raises(SystemExit, match=r"mexma-index: .*'nobody'"):
        command(capsys, *arguments)
    with pytest.raises(SystemExit, match="nowhere is none"):
        command(capsys, "--data", "nowhere", *arguments)


def test_a_restore_of_another_collection_is_refused(tmp_path):
    store = filled(tmp_path, "a", "b")
    store.back_up("a")
    [folder] = tmp_path.glob("snapshots/a/*")
    with pytest.raises(StoreError, match="'a', not 'b'"):
        store.restore_from("b", folder)
    assert store.count("b", Selection()) == 60
    store.close()

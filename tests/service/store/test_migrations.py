"""Two encoders' vectors of one collection: begun, followed, changed over and back, ended, damaged."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import (
    CollectionNotFound,
    FingerprintMismatch,
    InputError,
    MigrationConflict,
    MigrationNotFound,
    StoreCorrupt,
)
from service import index_command
from service.store import caretaker, planner
from service.store.local import LocalStore
from service.store.moving import Embedded
from service.store.pair import HELD_ROWS
from service.store.protocol import Document, Query, Selection
from tests.conftest import ROOT

from .crash_worker import DIM, NEW, NEW_DIM, PRINT, by, embed_by, vector_of
from .test_index import flip
from .test_local import filled


def new_vector(text: str) -> np.ndarray:
    return by(NEW, [text])[0]


by_new, by_old = embed_by(NEW), embed_by(PRINT)


def follow(store: LocalStore, name: str = "a", embed=by_new, limit: int = 16) -> None:
    """What the service does in the background, until nothing is left."""
    other = store.migrations.describe(name).other
    while rows := store.migrations.work(name, limit):
        store.migrations.take(name, other, rows, embed([row.text for row in rows]))


def write(store: LocalStore, texts: dict[str, str], vector=vector_of, fingerprint=PRINT) -> None:
    documents = [Document(id, text, "fi", {"text": text}) for id, text in texts.items()]
    store.upsert("a", documents, np.array([vector(t) for t in texts.values()]), fingerprint)


def check(store: LocalStore, texts: dict[str, str], vector, fingerprint: str, k: int = 7) -> None:
    """Everything there, and each search answered by this encoder's vectors and no other's."""
    documents = store.scroll("a", Selection(), 10_000).documents
    assert {d.id: d.text for d in documents} == texts
    units = {id: vector(t) / np.linalg.norm(vector(t)) for id, t in texts.items()}
    asked = vector("asked") / np.linalg.norm(vector("asked"))
    [hits] = store.search("a", asked[None], Query(k=k), fingerprint)
    expected = sorted(((float(u @ asked), id) for id, u in units.items()), reverse=True)[:k]
    assert [hit.id for hit in hits] == [id for _, id in expected]
    np.testing.assert_allclose([h.cosine for h in hits], [c for c, _ in expected], atol=1e-6)


@pytest.fixture
def texts() -> dict[str, str]:
    return {f"d{i}": f"text {i} of a" for i in range(60)}


def test_there_and_back_loses_nothing(tmp_path, texts):
    store = filled(tmp_path, "a")
    store.delete("a", ["d59"])
    del texts["d59"]
    migrations = store.migrations
    begun = migrations.begin("a", NEW_DIM, NEW)
    assert (begun.phase, begun.serving, begun.other) == ("embedding", PRINT, NEW)
    assert (begun.documents, begun.embedded) == (59, 0)
    assert migrations.begin("a", NEW_DIM, NEW) == begun, "asked again it goes on"
    follow(store)
    assert migrations.describe("a").phase == "ready"
    # Written and deleted while it was being done: taken over, the last of it under the lock.
    write(store, changed := {"d1": "changed", "late": "late", "d2": "changed too"})
    store.delete("a", ["d3"])
    texts |= changed
    del texts["d3"]
    assert migrations.describe("a").embedded == 56
    check(store, texts, vector_of, PRINT)
    info = migrations.cut_over("a", by_new)
    assert (info.phase, info.serving, info.other) == ("cut_over", NEW, PRINT)
    assert store.describe("a").fingerprint == NEW
    check(store, texts, new_vector, NEW)
    with pytest.raises(FingerprintMismatch):
        write(store, {"x": "x"})
    write(store, after := {"d1": "after", "later": "later"}, new_vector, NEW)
    store.delete("a", ["d4", "late"])
    texts = {id: t for id, t in (texts | after).items() if id not in ("d4", "late")}
    check(store, texts, new_vector, NEW)
    migrations.roll_back("a", by_old)
    check(store, texts, vector_of, PRINT)
    write(store, {"again": "again"})
    texts["again"] = "again"
    follow(store)
    migrations.cut_over("a", by_new)
    check(store, texts, new_vector, NEW)
    store.close()
    with closing(LocalStore(tmp_path)) as store:
        assert store.migrations.describe("a").phase == "cut_over"
        check(store, texts, new_vector, NEW)
        store.migrations.retire("a")
        check(store, texts, new_vector, NEW)
        with pytest.raises(MigrationNotFound):
            store.migrations.describe("a")
    with closing(LocalStore(tmp_path)) as store:
        check(store, texts, new_vector, NEW)
        assert store.migrations.names() == []
        store.migrations.begin("a", DIM, PRINT)
        assert store.migrations.describe("a").phase == "embedding", "and on to a third"
        store.migrations.abandon("a")
    assert len(list(tmp_path.glob("*a.*"))) == 1


def test_ready_is_said_while_writes_go_on(tmp_path):
    """As soon as a cut-over does what is left, and not where it is much of what there is, or fails."""
    store = filled(tmp_path, "a")
    migrations = store.migrations
    migrations.begin("a", NEW_DIM, NEW)
    follow(store)
    for few in ("x1", "x2", "x3", "x4", "x5"):
        write(store, {few: few})
        assert migrations.describe("a").phase == "ready"
    write(store, {f"y{i}": "more" for i in range(5)})
    found = migrations.describe("a")
    assert (found.phase, found.documents - found.embedded) == ("embedding", 10)
    migrations.cut_over("a", by_new)
    texts = {f"d{i}": f"text {i} of a" for i in range(60)}
    texts |= {f"x{i}": f"x{i}" for i in range(1, 6)} | {f"y{i}": "more" for i in range(5)}
    check(store, texts, new_vector, NEW)


def test_what_is_embedded_stays_and_nothing_is_embedded_twice(tmp_path):
    """Ended after every batch, as a restart would."""
    filled(tmp_path, "a").close()
    with closing(LocalStore(tmp_path)) as store:
        store.migrations.begin("a", NEW_DIM, NEW)
    seen: list[int] = []
    for _ in range(6):
        with closing(LocalStore(tmp_path)) as store:
            rows = store.migrations.work("a", 10)
            assert store.migrations.describe("a").embedded == len(seen)
            store.migrations.take("a", NEW, rows, by_new([row.text for row in rows]))
            seen += [row.rid for row in rows]
    assert sorted(set(seen)) == seen
    with closing(LocalStore(tmp_path)) as store:
        assert store.migrations.work("a", 10) == []
        assert store.migrations.describe("a").phase == "ready"


def test_a_cut_over_waits_for_few_documents_only(tmp_path):
    store = filled(tmp_path, "a", count=HELD_ROWS + 1)
    store.migrations.begin("a", NEW_DIM, NEW)
    with pytest.raises(MigrationConflict, match="257 documents are still to be embedded"):
        store.migrations.cut_over("a", by_new)
    rows = store.migrations.work("a", 1)
    store.migrations.take("a", NEW, rows, by_new([row.text for row in rows]))
    store.migrations.cut_over("a", by_new)
    check(store, {f"d{i}": f"text {i} of a" for i in range(257)}, new_vector, NEW)
    store.close()


def test_an_encoder_that_fails_leaves_everything_as_it_was(tmp_path, texts):
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)

    def broken(_):
        raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        store.migrations.cut_over("a", broken)
    check(store, texts, vector_of, PRINT)
    write(store, {"x": "x"})
    assert store.migrations.describe("a").phase == "embedding"
    store.close()


def test_documents_that_cannot_be_embedded_are_named_and_hold_up_the_cut_over(tmp_path, texts):
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)

    def some(batch) -> Embedded:
        bad = {i: "no tokens" for i, t in enumerate(batch) if t in ("text 5 of a", "text 59 of a")}
        return by_new(batch)._replace(failed=bad)

    follow(store, embed=some)
    info = store.migrations.describe("a")
    assert info.failed == {"d5": "no tokens", "d59": "no tokens"}
    assert (info.embedded, info.phase) == (58, "embedding")
    with pytest.raises(MigrationConflict, match=r"2 documents cannot.*'d5', no tokens"):
        store.migrations.cut_over("a", by_new)
    store.close()
    store = LocalStore(tmp_path)
    follow(store, embed=some)
    assert store.migrations.describe("a").failed.keys() == {"d5", "d59"}, "also after a restart"
    store.delete("a", ["d5"])
    write(store, {"d59": "better"})
    assert store.migrations.describe("a").failed == {}
    store.migrations.cut_over("a", by_new)
    del texts["d5"]
    check(store, texts | {"d59": "better"}, new_vector, NEW)
    store.close()


def test_each_phase_allows_what_it_allows(tmp_path):
    store = filled(tmp_path, "a")
    migrations = store.migrations
    for use in (migrations.describe, migrations.abandon, migrations.retire):
        with pytest.raises(MigrationNotFound, match="'a' is not being moved"):
            use("a")
    with pytest.raises(CollectionNotFound):
        migrations.begin("nobody", NEW_DIM, NEW)
    with pytest.raises(MigrationConflict, match="this encoder's vectors already"):
        migrations.begin("a", DIM, PRINT)
    migrations.begin("a", NEW_DIM, NEW)
    with pytest.raises(MigrationConflict, match="encoder-b; end that migration"):
        migrations.begin("a", 5, "encoder-c")
    for use in (migrations.retire, lambda name: migrations.roll_back(name, by_old)):
        with pytest.raises(MigrationConflict, match="not cut over"):
            use("a")
    migrations.cut_over("a", by_new)
    for use in (migrations.abandon, lambda name: migrations.cut_over(name, by_new)):
        with pytest.raises(MigrationConflict, match="cut over"):
            use("a")
    with pytest.raises(MigrationConflict, match="end that migration"):
        migrations.begin("a", NEW_DIM, NEW)
    store.close()


def test_rows_of_the_other_direction_are_dropped(tmp_path, texts):
    """What was embedded for one when the roles changed is not written into the other."""
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    rows = store.migrations.work("a", 60)
    store.migrations.cut_over("a", by_new)
    store.migrations.take("a", NEW, rows, by_new([row.text for row in rows]))
    check(store, texts, new_vector, NEW)
    store.migrations.roll_back("a", by_old)
    check(store, texts, vector_of, PRINT)
    store.close()


def test_a_number_is_never_given_twice(tmp_path):
    """A document comes and goes before the other encoder has seen it; its number is used up."""
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    follow(store)
    write(store, {"gone": "gone"})
    used = store._open["a"].last_rid()
    store.delete("a", ["gone"])
    for change, embed, vector, fingerprint in (
        (store.migrations.cut_over, by_new, new_vector, NEW),
        (store.migrations.roll_back, by_old, vector_of, PRINT),
    ):
        change("a", embed)
        write(store, {"next": fingerprint}, vector, fingerprint)
        assert store._open["a"].last_rid() == used + 1
        store.delete("a", ["next"])
        used += 1
    store.close()


def test_a_cursor_is_good_for_one_set_of_vectors(tmp_path):
    store = filled(tmp_path, "a")
    cursor = store.scroll("a", Selection(), 10).cursor
    store.migrations.begin("a", NEW_DIM, NEW)
    assert len(store.scroll("a", Selection(), 100, cursor).documents) == 50
    store.migrations.cut_over("a", by_new)
    with pytest.raises(InputError, match="cursor"):
        store.scroll("a", Selection(), 10, cursor)
    store.migrations.roll_back("a", by_old)
    assert len(store.scroll("a", Selection(), 100, cursor).documents) == 50
    store.close()


def test_dropping_and_restoring_end_a_migration(tmp_path, texts):
    for cut in (False, True):
        store = filled(tmp_path, "a")
        backup = store.back_up("a")
        store.migrations.begin("a", NEW_DIM, NEW)
        follow(store)
        if cut:
            store.migrations.cut_over("a", by_new)
        store.restore("a", backup.id)
        assert store.migrations.names() == []
        check(store, texts, vector_of, PRINT)
        store.migrations.begin("a", NEW_DIM, NEW)
        if cut:
            store.migrations.cut_over("a", by_new)
        store.drop("a")
        assert store.list() == []
        assert store.migrations.names() == []
        assert list(tmp_path.glob("*a.*")) == []
        store.close()


def test_a_snapshot_is_of_the_vectors_that_serve(tmp_path, texts):
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    before = store.back_up("a")
    store.migrations.cut_over("a", by_new)
    after = store.back_up("a")
    assert (before.fingerprint, after.fingerprint) == (PRINT, NEW)
    store.restore("a", after.id)
    check(store, texts, new_vector, NEW)
    store.restore("a", before.id)
    check(store, texts, vector_of, PRINT)
    store.close()


def test_writers_through_many_changes_of_roles(tmp_path):
    """Two threads write with whichever encoder serves, one follows, one cuts over and back. At the
    end both encoders hold exactly what was acknowledged, and no search mixed them."""
    store = filled(tmp_path, "a", count=40)
    expected = {f"d{i}": f"text {i} of a" for i in range(40)}
    store.migrations.begin("a", NEW_DIM, NEW)
    done, lock, problems = threading.Event(), threading.Lock(), []
    made_by = {PRINT: vector_of, NEW: new_vector}

    def guarded(work):
        def run(*arguments):
            try:
                work(*arguments)
            except Exception as error:  # shown by the assertion at the end
                problems.append(error)
                raise

        return run

    @guarded
    def writer(who: int) -> None:
        choose = random.Random(who)
        for n in range(120):
            ids = [f"d{who}-{i}" for i in choose.sample(range(12), 3)]
            if choose.random() < 0.3:
                store.delete("a", ids)
                with lock:
                    for id in ids:
                        expected.pop(id, None)
                continue
            texts = {id: f"{id} of {n}" for id in ids}
            while True:
                fingerprint = store.describe("a").fingerprint
                try:
                    write(store, texts, made_by[fingerprint], fingerprint)
                    break
                except FingerprintMismatch:
                    continue
            with lock:
                expected.update(texts)

    @guarded
    def follower() -> None:
        while not done.is_set():
            other = store.migrations.describe("a").other
            rows = store.migrations.work("a", 8)
            vectors = np.array([made_by[other](row.text) for row in rows], np.float32)
            if rows:
                store.migrations.take("a", other, rows, Embedded(vectors, {}))

    @guarded
    def searcher() -> None:
        while not done.is_set():
            fingerprint = store.describe("a").fingerprint
            asked = made_by[fingerprint]("asked")[None]
            try:
                [hits] = store.search("a", asked, Query(k=5), fingerprint)
            except FingerprintMismatch:
                continue
            for hit in hits:
                vector = made_by[fingerprint](hit.text)
                unit = asked[0] / np.linalg.norm(asked)
                assert hit.cosine == pytest.approx(
                    float(unit @ vector) / np.linalg.norm(vector), abs=1e-5
                )

    threads = [threading.Thread(target=writer, args=(who,)) for who in range(2)]
    background = [threading.Thread(target=work) for work in (follower, searcher)]
    for thread in [*background, *threads]:
        thread.start()
    turns = 0
    while any(thread.is_alive() for thread in threads):
        store.migrations.cut_over("a", by_new)
        store.migrations.roll_back("a", by_old)
        turns += 1
    done.set()
    for thread in [*background, *threads]:
        thread.join()
    assert not problems
    assert turns > 2
    check(store, expected, vector_of, PRINT)
    store.migrations.cut_over("a", by_new)
    check(store, expected, new_vector, NEW)
    store.migrations.roll_back("a", by_old)
    check(store, expected, vector_of, PRINT)
    store.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(planner, "EXACT_ROWS", 20)
    monkeypatch.setattr(caretaker, "TAIL_ROWS", 30)


def test_the_new_index_is_there_before_the_cut_over(tmp_path, small):
    store = filled(tmp_path, "a", count=200)
    store.migrations.begin("a", NEW_DIM, NEW)
    follow(store)
    store.settle()
    assert store.migrations.describe("a").index_state == "approximate"
    overlap = store.migrations.overlap("a", 5, 100)
    assert 0.9 <= overlap.recall <= 1
    store.migrations.cut_over("a", by_new)
    assert store.describe("a").index_state == "approximate"
    check(store, {f"d{i}": f"text {i} of a" for i in range(200)}, new_vector, NEW)
    store.close()


def test_the_overlap_is_what_an_independent_calculation_finds(tmp_path):
    store = filled(tmp_path, "a", count=90)
    migrations = store.migrations
    migrations.begin("a", NEW_DIM, NEW)
    assert migrations.overlap("a", 5, 100) is None
    while len(rows := migrations.work("a", 25)) == 25:  # the last 15 stay undone
        migrations.take("a", NEW, rows, by_new([row.text for row in rows]))
    store.delete("a", ["d3", "d60"])
    texts = [f"text {i} of a" for i in range(75) if i not in (3, 60)]

    def neighbours(vector) -> list[set[int]]:
        units = np.array([vector(t) / np.linalg.norm(vector(t)) for t in texts], np.float64)
        cosines = units @ units.T
        np.fill_diagonal(cosines, -2)
        return [set(row) for row in np.argsort(-cosines, axis=1)[:, :5]]

    shared = [
        len(a & b) / 5 for a, b in zip(neighbours(vector_of), neighbours(new_vector), strict=True)
    ]
    found = migrations.overlap("a", 5, 100)
    assert (found.k, found.queries, found.documents, found.recall) == (5, 73, 73, 1)
    assert found.overlap == pytest.approx(np.mean(shared), abs=1e-12)
    assert 0 < found.overlap < 0.5, "these two have little to do with each other"
    sampled = np.linspace(0, 72, 10).astype(int)
    found = migrations.overlap("a", 5, 10)
    assert found.overlap == pytest.approx(np.mean([shared[i] for i in sampled]), abs=1e-12)
    assert migrations.overlap("a", 500, 10).k == 36, "half of the others"
    store.close()


def test_few_documents_overlap_by_chance_as_the_guide_says(tmp_path):
    store = filled(tmp_path, "a", count=12)
    store.migrations.begin("a", NEW_DIM, NEW)
    follow(store)
    found = store.migrations.overlap("a", 10, 100)
    guide = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    assert f"of 12 documents `k` is {found.k} and chance {found.k / 11:.2f}" in guide
    store.delete("a", [f"d{i}" for i in range(10)])
    assert store.migrations.overlap("a", 10, 100) is None
    assert "Under three documents there is no report" in guide
    store.close()


def test_an_encoder_overlaps_wholly_with_a_turned_copy_of_itself(tmp_path):
    """The same space in another basis answers the same."""
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))
    store = filled(tmp_path, "a")
    store.migrations.begin("a", DIM, NEW)

    def by_turned(texts) -> Embedded:
        return Embedded((by_old(texts).vectors @ turned).astype(np.float32), {})

    follow(store, embed=by_turned)
    assert store.migrations.overlap("a", 10, 60).overlap == 1
    store.close()


def folders(root: Path, store: LocalStore) -> tuple[Path, Path]:
    """Of the collection that serves, and of the one beside it."""
    serving = store._open["a"].directory
    [other] = [path for path in root.glob("a.*") if path != serving]
    return serving, other


@pytest.mark.parametrize("cut", [False, True])
def test_damage_beside_is_named_and_the_collection_serves(tmp_path, texts, cut, capsys):
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    follow(store)
    if cut:
        store.migrations.cut_over("a", by_new)
    _, other = folders(tmp_path, store)
    store.close()
    (other / "documents.sqlite").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=str(other)):
        index_command.main(["--data", str(tmp_path), "verify"])
    store = LocalStore(tmp_path)
    vector, fingerprint = (new_vector, NEW) if cut else (vector_of, PRINT)
    check(store, texts, vector, fingerprint)
    for use in (
        lambda: store.migrations.describe("a"),
        lambda: store.migrations.roll_back("a", by_old),
        lambda: store.migrations.begin("a", NEW_DIM, NEW),
    ):
        with pytest.raises(StoreCorrupt, match=str(other)):
            use()
    assert other.exists()
    (store.migrations.retire if cut else store.migrations.abandon)("a")
    assert not other.exists()
    check(store, texts, vector, fingerprint)
    store.migrations.begin("a", 3, "encoder-c")
    store.close()


def test_half_a_copy_never_poses_as_the_collection(tmp_path):
    """Somebody took the serving folder away, or the file that says which one serves is damaged."""
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    serving, other = folders(tmp_path, store)
    store.close()
    serving.rename(tmp_path / "away")
    store = LocalStore(tmp_path)
    assert store.list()[0].index_state == "corrupt"
    store.close()
    (tmp_path / "away").rename(serving)
    flip(other / "roles.json")
    store = LocalStore(tmp_path)
    with pytest.raises(StoreCorrupt, match="which one serves"):
        store.describe("a")
    store.drop("a")
    store.close()
    assert list(tmp_path.glob("a.*")) == []


def test_the_command_verifies_and_backs_up_what_serves(tmp_path, capsys):
    store = filled(tmp_path, "a")
    store.migrations.begin("a", NEW_DIM, NEW)
    store.migrations.cut_over("a", by_new)
    index_command.main(["--data", str(tmp_path), "verify"])
    assert capsys.readouterr().out.count("60 documents verified") == 2
    index_command.main(["--data", str(tmp_path), "backup", "a"])
    [backup] = store.backups("a")
    assert backup.fingerprint == NEW
    store.close()

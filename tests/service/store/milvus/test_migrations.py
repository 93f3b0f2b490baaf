"""A collection on Milvus moved to another encoder: there, back, to an end, killed, and disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mexma.errors import CollectionAway, MigrationConflict, MigrationNotFound
from service import index_command, migrate_command
from service.store import steps
from service.store.milvus import connection
from service.store.milvus.migrations import MilvusMigrations
from service.store.milvus.sides import NEWER, OLDER, Sides
from service.store.milvus.store import MilvusStore
from service.store.moving import Embedded
from service.store.protocol import Document, Query, Selection
from service.store.steps import MILVUS_STEPS
from tests.fakes import FakeEncoder

from .migrating import BATCH_ROWS, Killer, fake
from .server import MilvusServer

NAME = "my_notes-b"  # in Milvus mexma_my__notes_hb
OLD, NEW = fake(Path("old")), fake(Path("new"))
TAGS = ("en", "fi", "pt-BR")


def document(id: str, text: str) -> Document:
    return Document(id, text, TAGS[len(text) % 3], {"text": text, "n": [len(text), None]})


class Notes:
    """A collection and what must be in it, in the order of writing."""

    def __init__(self, store: MilvusStore, uri: str):
        self.store, self.uri = store, uri
        self.texts: dict[str, str] = {}
        store.create(NAME, 16, OLD.fingerprint)

    def put(self, texts: dict[str, str], encoder: FakeEncoder = OLD) -> None:
        documents = [document(id, text) for id, text in texts.items()]
        vectors = np.array([encoder.vector(text) for text in texts.values()])
        self.store.upsert(NAME, documents, vectors, encoder.fingerprint)
        for id, text in texts.items():
            self.texts.pop(id, None)
            self.texts[id] = text

    def delete(self, id: str) -> None:
        assert self.store.delete(NAME, [id]) == [id]
        del self.texts[id]

    def arguments(self, model: str, *ends: str) -> list[str]:
        return ["--data", self.uri, "migrate", NAME, f"models/{model}", *ends]

    def migrate(self, model: str, *ends: str) -> None:
        index_command.main(self.arguments(model, *ends))

    def check(self, encoder: FakeEncoder) -> None:
        """All documents in order, each with this encoder's vector, and found by it."""
        info = self.store.describe(NAME)
        assert (info.fingerprint, info.count) == (encoder.fingerprint, len(self.texts))
        page = self.store.scroll(NAME, Selection(), 10_000, vectors=True)
        assert page.documents == [document(*item) for item in self.texts.items()]
        expected = np.array([encoder.vector(text) for text in self.texts.values()])
        assert np.array_equal(page.vectors, expected)
        asked = encoder.vector("asked")
        [hits] = self.store.search(NAME, asked[None], Query(k=5), encoder.fingerprint)
        cosines = dict(zip(self.texts, (expected @ asked).tolist(), strict=True))
        assert [h.id for h in hits] == sorted(cosines, key=cosines.get, reverse=True)[:5]
        tagged = Selection(frozenset({"fi"}))
        assert self.store.count(NAME, tagged) == sum(d.lang == "fi" for d in page.documents)
        assert [i.name for i in self.store.list()] == [NAME], "what is beside is not listed"


@pytest.fixture(autouse=True)
def fakes(monkeypatch) -> None:
    monkeypatch.setattr("mexma.encoder.OnnxEncoder", fake)
    monkeypatch.setattr(migrate_command, "BATCH_ROWS", BATCH_ROWS)


def remove_everything(store: MilvusStore) -> None:
    for milvus in store._milvus.collections():
        store._milvus.call("drop_collection", milvus)


@pytest.fixture
def notes(milvus_store: MilvusStore, milvus_server: MilvusServer) -> Iterator[Notes]:
    remove_everything(milvus_store)
    made = Notes(milvus_store, milvus_server.uri)
    made.put({f"d{i}": f"text {i}" for i in range(30)})
    made.put({"d3": "changed"})
    yield made
    remove_everything(milvus_store)


def test_there_and_back_and_to_an_end(notes: Notes, capsys):
    """Repeating what is done is no error; each write is there on either way."""
    notes.migrate("new")
    said = capsys.readouterr()
    assert f"30 of 30 documents embedded by {NEW.fingerprint}" in said.out
    assert f"overlap@10 with {OLD.fingerprint}: 0." in said.out
    assert "recall of the other index: 1.000 (30 documents as queries)" in said.out
    assert "30/30" in said.err, "a progress bar"
    notes.check(OLD)
    notes.put({"late": "late", "d4": "d4 changed"})
    notes.delete("d5")
    for already in (False, True):
        notes.migrate("new", "--cut-over")
        said = capsys.readouterr().out
        assert ("cut over; serve models/new" in said) is not already
        assert (f"vectors of {OLD.fingerprint} are kept beside it" in said) is already
        notes.check(NEW)
    # What is written now is new only, until the way back is taken.
    notes.put({"after": "after", "d6": "d6 changed"}, NEW)
    notes.delete("late")
    notes.check(NEW)
    with pytest.raises(SystemExit, match=r"has vectors of .* --retire with the model of"):
        notes.migrate("third")
    for already in (False, True):
        notes.migrate("old", "--cut-over")
        assert ("rolled back; serve models/old" in capsys.readouterr().out) is not already
        notes.check(OLD)
    notes.put({"again": "again"})
    notes.migrate("new", "--cut-over")
    notes.check(NEW)
    for _ in range(2):
        notes.migrate("new", "--retire")
        notes.check(NEW)
        assert len(notes.store._milvus.collections()) == 1
    assert "answers already, and nothing is beside it" in capsys.readouterr().out
    # Given up before a cut-over, and all of it in one call.
    notes.migrate("old")
    notes.migrate("new", "--retire")
    notes.check(NEW)
    assert notes.store.moves.beside(NAME) == []
    notes.migrate("third", "--retire")
    notes.check(fake(Path("third")))
    assert len(notes.store._milvus.collections()) == 1


def test_what_is_embedded_is_not_embedded_again(notes: Notes, capsys, monkeypatch):
    moves = notes.store.moves
    moves.begin(NAME, 24, NEW.fingerprint)
    rows = moves.work(NAME, 20)
    assert [row.id for row in rows] == [*notes.texts][:20], "in the order of writing"
    vectors = np.array([NEW.vector(row.text) for row in rows])
    moves.take(NAME, NEW.fingerprint, rows, Embedded(vectors, {}))
    encoded = []
    run = FakeEncoder.run
    monkeypatch.setattr(FakeEncoder, "run", lambda e, s: encoded.extend(s) or run(e, s))
    notes.migrate("new", "--cut-over")
    assert "20/30" in capsys.readouterr().err
    sentences = len(migrate_command.SENTENCES)
    assert 10 <= len(encoded) <= 10 + sentences, "canaries at most beside what was left"
    notes.check(NEW)


def test_it_is_compared_in_windows(notes: Notes, monkeypatch):
    """As of a collection larger than what one query of Milvus returns."""
    with monkeypatch.context() as patch:
        patch.setattr(connection, "MAX_ROWS", 12)
        notes.migrate("new")
        notes.put({f"d{i}": f"d{i} anew" for i in range(0, 30, 2)})
        for i in range(1, 30, 4):
            notes.delete(f"d{i}")
        notes.put({f"e{i}": f"e{i}" for i in range(20)})
        notes.migrate("new", "--cut-over")
    notes.check(NEW)


def test_a_row_that_is_older_than_the_one_it_replaced_stays(notes: Notes, monkeypatch):
    """A service whose clock is behind writes a document again with a lower number."""
    notes.migrate("new")
    stamp = notes.store._stamp(NAME)
    with monkeypatch.context() as patch:
        patch.setattr(notes.store, "_seqs", lambda *_: range(7, 8))
        notes.put({"d29": "by an old clock"})
    assert notes.store._milvus.count(stamp, "seq == 7") == 1
    notes.texts = {"d29": notes.texts.pop("d29"), **notes.texts}
    # So many more that it is embedded before what is too much is removed.
    notes.put({f"e{i}": f"e{i}" for i in range(2 * BATCH_ROWS)})
    notes.migrate("new", "--cut-over")
    notes.check(NEW)


def test_a_document_that_cannot_be_embedded_is_named_and_stops_the_cut_over(notes: Notes, capsys):
    bad = [Document("empty", "", "en")]
    notes.store.upsert(NAME, bad, np.ones((1, 16), np.float32), OLD.fingerprint)
    for ends in ([], ["--cut-over"]):
        with pytest.raises(SystemExit, match=r"empty: .*text"):
            notes.migrate("new", *ends)
        assert "30 of 31 documents embedded" in capsys.readouterr().out
        assert notes.store.describe(NAME).fingerprint == OLD.fingerprint
    moves = notes.store.moves
    rows = moves.work(NAME, 9)
    moves.take(NAME, NEW.fingerprint, rows, Embedded(np.zeros((1, 24), np.float32), {0: "no"}))
    assert moves.describe(NAME).failed == {"empty": "no"}
    assert [moves.work(NAME, 9) for _ in range(3)] == [[], [], []], "not tried for ever"
    with pytest.raises(MigrationConflict, match=r"1 documents cannot be embedded .* 'empty', no"):
        moves.cut_over(NAME, None)
    notes.put({"empty": "not any more"})
    notes.migrate("new", "--cut-over")
    notes.check(NEW)


def test_its_own_model_embeds_anew_where_it_is_not_what_it_was(notes: Notes, capsys):
    """As the message of a collection that is off says; judged by its own documents."""
    documents = [document(*item) for item in notes.texts.items()]
    wrong = np.array([-OLD.vector(d.text) for d in documents])
    notes.store.upsert(NAME, documents, wrong, OLD.fingerprint)
    notes.migrate("old")
    assert "30 of 30 documents" in capsys.readouterr().out
    notes.migrate("old", "--cut-over")
    assert "cut over" in capsys.readouterr().out
    notes.check(OLD)
    notes.migrate("old", "--cut-over")
    assert "answers already" in capsys.readouterr().out
    notes.migrate("old", "--retire")
    notes.check(OLD)


def begun(notes: Notes) -> None:
    """Vectors of both, and writes since."""
    notes.migrate("new")
    notes.put({"d7": "d7 anew", "late": "late"})
    notes.delete("d8")


def cut_over(notes: Notes) -> None:
    """The new one serves, and has been written to."""
    notes.migrate("new", "--cut-over")
    notes.put({"d7": "d7 anew", "late": "late"}, NEW)
    notes.delete("d8")


class Interrupted(BaseException):
    """In place of a kill."""


def interrupted_at(step: str, times: int, notes: Notes, *arguments: str) -> None:
    def observer(reached: str) -> None:
        nonlocal times
        times -= reached == step
        if reached == step and times == 0:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "observer", observer)
        with pytest.raises(Interrupted):
            notes.migrate(*arguments)


def half_over(notes: Notes) -> None:
    begun(notes)
    interrupted_at("milvus: serving renamed", 1, notes, "new", "--cut-over")


def half_back(notes: Notes) -> None:
    cut_over(notes)
    interrupted_at("milvus: serving renamed", 1, notes, "old", "--cut-over")


def almost_back(notes: Notes) -> None:
    cut_over(notes)
    interrupted_at("milvus: other renamed", 1, notes, "old", "--cut-over")


def nothing(notes: Notes) -> None:
    pass


KILLS: list[tuple[Callable[[Notes], None], str, int, tuple[str, str]]] = [
    (nothing, "milvus: collection made", 1, ("new", "--cut-over")),
    (nothing, "milvus: beside made", 1, ("new", "--cut-over")),
    (nothing, "milvus: rows taken", 1, ("new", "--cut-over")),
    (nothing, "milvus: rows taken", 3, ("new", "--cut-over")),
    (nothing, "milvus: serving renamed", 1, ("new", "--cut-over")),
    (nothing, "milvus: other renamed", 1, ("new", "--retire")),
    (begun, "milvus: rows removed", 1, ("new", "--cut-over")),
    (begun, "milvus: beside dropped", 1, ("old", "--retire")),
    (cut_over, "milvus: rows taken", 1, ("old", "--cut-over")),
    (cut_over, "milvus: rows removed", 1, ("old", "--cut-over")),
    (cut_over, "milvus: serving renamed", 1, ("old", "--cut-over")),
    (cut_over, "milvus: other renamed", 1, ("old", "--cut-over")),
    (cut_over, "milvus: aside renamed", 1, ("old", "--cut-over")),
    (cut_over, "milvus: beside dropped", 1, ("new", "--retire")),
    (half_over, "milvus: mended", 1, ("new", "--cut-over")),
    (half_back, "milvus: mended", 1, ("old", "--cut-over")),
    (almost_back, "milvus: mended", 1, ("old", "--cut-over")),
]


@pytest.fixture(scope="module")
def killer(tmp_path_factory) -> Iterator[Killer]:
    made = Killer(tmp_path_factory.mktemp("killer") / "log")
    yield made
    made.close()


@pytest.mark.parametrize(("before", "step", "times", "command"), KILLS)
def test_killed_and_called_again(notes: Notes, killer: Killer, before, step, times, command):
    """SIGKILL at every named step: the same command goes on to what it was asked for."""
    before(notes)
    killer.kill_at(step, times, notes.arguments(*command))
    notes.migrate(*command)
    notes.check(fake(Path(command[0])))
    kept = 1 if "--retire" in command else 2
    assert len(notes.store._milvus.collections()) == kept


def test_every_step_is_among_those_at_which_it_is_killed():
    assert {step for _, step, _, _ in KILLS} == MILVUS_STEPS


@pytest.mark.parametrize("before", [half_over, half_back])
@pytest.mark.parametrize("model", ["old", "new"])
def test_killed_half_over_any_other_call_puts_it_right(notes: Notes, before, model, capsys):
    """Nothing has the name then; who asks is told why, and nobody can take it."""
    before(notes)
    store = notes.store
    for use in (
        lambda: store.describe(NAME),
        lambda: store.create(NAME, 16, OLD.fingerprint),
        lambda: store.upsert(NAME, [document("x", "x")], OLD.vector("x")[None], OLD.fingerprint),
        lambda: store.drop(NAME),
    ):
        with pytest.raises(CollectionAway, match="run mexma-index migrate again") as caught:
            use()
        assert caught.value.public == str(caught.value)
    assert store.list() == []
    notes.migrate(model)
    assert "cut off is put right" in capsys.readouterr().out
    notes.check(OLD if before is half_over else NEW)
    notes.migrate(model, "--cut-over")
    notes.check(fake(Path(model)))


def test_over_http_the_moment_between_is_a_503_that_says_so(notes: Notes, make_client):
    half_over(notes)
    client = make_client(OLD, store=MilvusStore(notes.uri))
    answer = client.post(f"/v1/collections/{NAME}/search", json={"queries": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "collection_away")
    assert "being changed over" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) >= 1
    assert client.put(f"/v1/collections/{NAME}").status_code == 503
    answer = client.post(f"/v1/collections/{NAME}/migration", json={"model": "new"})
    assert answer.status_code == 501
    assert "mexma-index --data http://HOST:19530 migrate" in answer.json()["error"]["message"]


def added(notes: Notes) -> None:
    notes.put({"meanwhile": "meanwhile"})


def changed(notes: Notes) -> None:
    notes.put({"d9": "d9 changed meanwhile"})


def deleted(notes: Notes) -> None:
    notes.delete("d9")


@pytest.mark.parametrize("write", [added, changed, deleted])
@pytest.mark.parametrize("when", ["embedded", "compared", "compared, then killed"])
def test_what_is_written_meanwhile_is_noticed_and_not_lost(notes: Notes, monkeypatch, write, when):
    """Before the comparison with which a change-over begins, and between that and the renaming."""
    where = (MilvusMigrations, "overlap") if when == "embedded" else (Sides, "_rename")
    original = getattr(*where)
    once = iter([write])

    def disturbed(*arguments):
        for act in once:
            act(notes)
        return original(*arguments)

    monkeypatch.setattr(*where, disturbed)
    if when == "compared, then killed":
        interrupted_at("milvus: serving renamed", 1, notes, "new", "--cut-over")
    else:
        with pytest.raises(SystemExit, match="stop what writes to it, and run this again"):
            notes.migrate("new", "--cut-over")
        notes.check(OLD)
    notes.migrate("new", "--cut-over")
    notes.check(NEW)


def test_what_is_written_before_the_way_back_is_not_lost(notes: Notes, monkeypatch):
    notes.migrate("new", "--cut-over")
    rename, once = Sides._rename, iter([lambda: notes.put({"meanwhile": "meanwhile"}, NEW)])

    def disturbed(*arguments):
        for act in once:
            act()
        return rename(*arguments)

    monkeypatch.setattr(Sides, "_rename", disturbed)
    interrupted_at("milvus: serving renamed", 1, notes, "old", "--cut-over")
    notes.migrate("new")
    notes.check(NEW)
    notes.migrate("old", "--cut-over")
    notes.check(OLD)


def test_collections_of_others_are_not_touched(notes: Notes):
    """One that has the name that would be beside, and ours whose names are alike."""
    client = notes.store._milvus._connected()
    theirs = "mexma_my__notes_hb" + NEWER
    client.create_collection(theirs, dimension=2)
    client.insert(theirs, [{"id": 1, "vector": [1.0, 2.0]}])
    for alike in ("my_notes-b_b", "my_notes-b_k", "my_notes-b-r", "my_notes"):
        notes.store.create(alike, 16, OLD.fingerprint)
    before = sorted(notes.store._milvus.collections())
    with pytest.raises(SystemExit, match=f"'{theirs}' was not made by this service"):
        notes.migrate("new")
    assert notes.store.describe(NAME).count == 30
    notes.store.drop(NAME)
    after = sorted(notes.store._milvus.collections())
    assert [name for name in before if name not in after] == ["mexma_my__notes_hb"]
    assert client.query(theirs, ids=[1])[0]["id"] == 1


def test_what_is_beside_goes_with_its_collection(notes: Notes):
    for before in (begun, cut_over):
        before(notes)
        assert len(notes.store._milvus.collections()) == 2
        notes.store.drop(NAME)
        assert notes.store._milvus.collections() == []
        notes.store.create(NAME, 16, OLD.fingerprint)
        notes.texts = {}
        notes.put({f"d{i}": f"text {i}" for i in range(30)})


def test_a_third_collection_under_the_name_is_left_to_whoever_runs_this(notes: Notes):
    """As a service of a version that knows nothing of this would make it, between two renames."""
    half_over(notes)
    at = "mexma_my__notes_hb"
    fresh = connection.Stamp.new(NAME, 16, OLD.fingerprint, "FLAT")
    notes.store._milvus.create(fresh)
    with pytest.raises(SystemExit, match=f"{at}, {at}{NEWER}, {at}{OLDER}, and at most two"):
        notes.migrate("new", "--cut-over")
    notes.store._milvus.call("drop_collection", at)
    notes.migrate("new", "--cut-over")
    notes.check(NEW)


def test_phases_say_what_is_possible(notes: Notes):
    moves = notes.store.moves
    for ask in (moves.describe, moves.retire, moves.abandon):
        with pytest.raises(MigrationNotFound):
            ask(NAME)
    with pytest.raises(MigrationConflict, match="has this encoder's vectors already"):
        moves.begin(NAME, 16, OLD.fingerprint)
    begun = moves.begin(NAME, 24, NEW.fingerprint)
    assert (begun.phase, begun.documents, begun.embedded) == ("embedding", 30, 0)
    assert moves.begin(NAME, 24, NEW.fingerprint) == begun
    for refused in (lambda: moves.roll_back(NAME, None), lambda: moves.retire(NAME)):
        with pytest.raises(MigrationConflict, match="not cut over"):
            refused()
    assert len(moves.work(NAME, 8)) == 8
    moves.abandon(NAME)
    moves.begin(NAME, 24, NEW.fingerprint)
    assert len(moves.work(NAME, 100)) == 30, "begun anew is from the beginning"
    with pytest.raises(MigrationConflict, match=r"30 documents .* were written or deleted since"):
        moves.cut_over(NAME, None)
    notes.migrate("new")
    assert moves.describe(NAME).phase == "ready"
    assert moves.cut_over(NAME, None).phase == "cut_over"
    for refused in (lambda: moves.cut_over(NAME, None), lambda: moves.abandon(NAME)):
        with pytest.raises(MigrationConflict, match="cut over"):
            refused()


def test_the_overlap_is_that_of_the_embedded_store(notes: Notes, monkeypatch):
    notes.put({f"e{i}": f"other {i}" for i in range(30)})
    notes.migrate("new")
    found = notes.store.moves.overlap(NAME, 7, 1000)
    texts = [*notes.texts.values()]
    near = []
    for encoder in (OLD, NEW):
        vectors = np.array([encoder.vector(text) for text in texts], np.float64)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -2)
        near.append([set(row) for row in np.argsort(-cosines, axis=1)[:, :7]])
    shared = np.mean([len(a & b) / 7 for a, b in zip(*near, strict=True)])
    assert (found.k, found.queries, found.documents) == (7, 60, 60)
    assert found.overlap == pytest.approx(shared, abs=1e-6)
    assert found.recall == 1


def test_an_approximate_index_stays_one(milvus_store, notes: Notes, capsys, monkeypatch):
    with closing(MilvusStore(notes.uri, index="HNSW")) as graph:
        notes.store.drop(NAME)
        made = Notes(graph, notes.uri)
        made.put({f"d{i}": f"text {i}" for i in range(40)})
        made.migrate("new", "--cut-over")
        made.check(NEW)
        assert graph.describe(NAME).index_state == "approximate"
        assert "recall of the other index: 1.000" in capsys.readouterr().out
        monkeypatch.setattr(connection, "MAX_ROWS", 30)
        assert graph.moves.overlap(NAME, 10, 20).recall is None


def test_where_there_is_nothing_to_move(notes: Notes, tmp_path):
    with pytest.raises(SystemExit, match="no collection 'nobody'"):
        index_command.main(["--data", notes.uri, "migrate", "nobody", "models/new"])
    with pytest.raises(SystemExit, match=r"Milvus at 127\.0\.0\.1:1 does not answer"):
        index_command.main(["--data", "http://127.0.0.1:1", "migrate", NAME, "models/new"])
    notes.store.drop(NAME)
    notes.store.create(NAME, 16, OLD.fingerprint)
    notes.texts = {}
    notes.migrate("new", "--cut-over")
    assert notes.store.describe(NAME).fingerprint == NEW.fingerprint


@pytest.mark.parametrize("step", ["rows taken", "serving renamed", "other renamed"])
def test_milvus_dies(tmp_path, monkeypatch, step):
    """Killed with SIGKILL, on the way there and on the way back: the command says so and ends, and
    called again when Milvus is back it goes on."""
    server = MilvusServer(tmp_path / "milvus")
    server.start()
    try:
        with closing(MilvusStore(server.uri)) as store:
            notes = Notes(store, server.uri)
            notes.put({f"d{i}": f"text {i}" for i in range(30)})

        def observer(reached: str) -> None:
            if reached == f"milvus: {step}":
                monkeypatch.setattr(steps, "observer", lambda _: None)
                server.kill()

        for model in ("new", "old") if step != "rows taken" else ("new",):
            monkeypatch.setattr(steps, "observer", observer)
            with pytest.raises(SystemExit, match="does not answer"):
                notes.migrate(model, "--cut-over")
            server.start()
            notes.migrate(model, "--cut-over")
            with closing(MilvusStore(server.uri)) as notes.store:
                notes.check(fake(Path(model)))
    finally:
        server.kill()

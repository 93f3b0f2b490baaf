"""Moving a collection to another encoder through HTTP, with fakes and with two real encoders."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from mexma.encoder import OnnxEncoder, encode
from mexma.sample import tatoeba_sample
from service import index_command, migrator
from service.canaries import SENTENCES as SENTENCES_KEPT
from service.store.local import LocalStore
from service.store.moving import Embedded
from service.store.protocol import Document, Query
from tests.conftest import ROOT, Server, start_server, wait_until_ready
from tests.fakes import FakeEncoder
from tests.tiny import tiny_artifact

NOTES = "/v1/collections/notes"
SENTENCES = [s.text for s in tatoeba_sample()]


@pytest.fixture
def encoders():
    return FakeEncoder(name="old"), FakeEncoder(name="new", dim=24)


@pytest.fixture
def client(make_client, encoders, monkeypatch):
    monkeypatch.setattr(migrator, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(migrator, "RETRY_S", 0.01)
    made = make_client(encoders[0], further=encoders[1:])
    made.put(NOTES)
    # Before a test makes it fail: a migration begins with the canaries of the new encoder.
    made.put("/v1/collections/theirs", params={"model": "new"})
    return made


def put(client, texts: dict[str, str]) -> dict:
    documents = [{"id": id, "text": text, "lang": "en"} for id, text in texts.items()]
    response = client.post(f"{NOTES}/documents", json={"documents": documents})
    assert response.status_code == 200, response.text
    return response.json()


def call(client, verb: str = "", method: str = "post", status: int = 200, **body) -> dict:
    path = f"{NOTES}/migration" + (f"/{verb}" if verb else "")
    response = client.request(method, path, json=body or None)
    assert response.status_code == status, response.text
    return response.json() if response.content else {}


def look(client, **params) -> dict:
    response = client.get(f"{NOTES}/migration", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def until_done(client) -> None:
    """All that is there is embedded by both."""

    def done() -> bool:
        found = look(client, sample=0)
        return found["embedded"] == found["documents"] == client.get(NOTES).json()["count"]

    until(done, "it was never done")


def until_embedded(client, count: int) -> None:
    until(lambda: look(client, sample=0)["embedded"] >= count, "no progress")


def check(client, encoder: FakeEncoder, texts: dict[str, str]) -> None:
    """All texts are there, and this encoder's vectors answer."""
    page = client.post(f"{NOTES}/documents/scroll", json={"limit": 1000}).json()
    assert {d["id"]: d["text"] for d in page["documents"]} == texts
    asked = encoder.vector("asked")
    answer = client.post(f"{NOTES}/search", json={"queries": ["asked"], "k": 5}).json()
    assert answer["fingerprint"] == encoder.fingerprint
    cosines = {id: float(encoder.vector(t) @ asked) for id, t in texts.items()}
    best = sorted(cosines, key=cosines.get, reverse=True)[:5]
    assert [hit["id"] for hit in answer["results"][0]] == best
    for hit in answer["results"][0]:
        assert hit["cosine"] == pytest.approx(cosines[hit["id"]], abs=1e-5)


def test_the_whole_way_there_and_back_and_to_an_end(client, encoders):
    old, new = encoders
    texts = {str(i): f"text {i}" for i in range(300)}
    put(client, texts)
    begun = call(client, model="new")
    assert (begun["phase"], begun["serving"], begun["other"]) == (
        "embedding",
        old.fingerprint,
        new.fingerprint,
    )
    assert call(client, model=new.fingerprint)["other"] == new.fingerprint
    put(client, {"1": "changed", "late": "late"})
    client.delete(f"{NOTES}/documents/2")
    texts |= {"1": "changed", "late": "late"}
    del texts["2"]
    check(client, old, texts)
    until_done(client)
    found = look(client)
    assert (found["phase"], found["share"], found["eta_s"], found["failed"]) == ("ready", 1, 0, {})
    assert found["report"]["queries"] == 100
    assert found["report"]["documents"] == 300
    assert call(client, "cut-over")["phase"] == "cut_over"
    check(client, new, texts)
    assert client.get(NOTES).json()["fingerprint"] == new.fingerprint
    assert client.put(NOTES).json()["dimensions"] == 24, "found, whichever is its encoder"
    assert put(client, {"3": "after", "last": "last"})["fingerprint"] == new.fingerprint
    client.delete(f"{NOTES}/documents/late")
    texts |= {"3": "after", "last": "last"}
    del texts["late"]
    check(client, new, texts)
    assert call(client, "rollback")["serving"] == old.fingerprint
    check(client, old, texts)
    assert call(client, "cut-over")["serving"] == new.fingerprint
    assert call(client, "retire")["fingerprint"] == new.fingerprint
    check(client, new, texts)
    assert "not being moved" in call(client, status=404, method="get")["error"]["message"]
    call(client, model="old")
    call(client, method="delete", status=204)
    check(client, new, texts)


def test_what_is_refused(client, encoders):
    assert "not being moved" in call(client, "cut-over", status=404)["error"]["message"]
    said = call(client, status=404, model="nobody")["error"]["message"]
    assert all(e.fingerprint in said and e.manifest.name in said for e in encoders)
    assert "already" in call(client, status=409, model="old")["error"]["message"]
    assert client.post("/v1/collections/x/migration", json={"model": "new"}).status_code == 404
    call(client, model="new")
    for verb in ("rollback", "retire"):
        assert "not cut over" in call(client, verb, status=409)["error"]["message"]
    call(client, "cut-over")
    assert "cut over" in call(client, "cut-over", status=409)["error"]["message"]
    assert "retire" in call(client, method="delete", status=409)["error"]["message"]
    assert client.get(f"{NOTES}/migration", params={"k": 0}).status_code == 422


def test_too_much_left_is_no_cut_over(client, encoders):
    encoders[1].gate.clear()
    put(client, {str(i): f"text {i}" for i in range(300)})
    call(client, model="new")
    message = call(client, "cut-over", status=409)["error"]["message"]
    encoders[1].gate.set()
    assert "300 documents are still to be embedded" in message
    check(client, encoders[0], {str(i): f"text {i}" for i in range(300)})


def test_a_failing_engine_blocks_and_says_so_and_loses_nothing(client, encoders):
    old, new = encoders
    texts = {str(i): f"text {i}" for i in range(50)}
    put(client, texts)
    new.broken = True
    call(client, model="new")
    until(lambda: look(client)["blocked"], "never blocked")
    assert "inference failed" in look(client)["blocked"]
    assert (look(client)["failed"], look(client)["embedded"]) == ({}, 0)
    assert call(client, "cut-over", status=500)["error"]["type"] == "engine_error"
    check(client, old, texts)
    new.broken = False
    until_done(client)
    until(lambda: look(client)["blocked"] is None, "still blocked")
    call(client, "cut-over")
    check(client, new, texts)


def test_a_document_that_fails_is_named_and_the_others_go_on(client, encoders):
    _, new = encoders
    new.poison, new.not_finite = new.token("q"), new.token("z")
    texts = {str(i): f"text {i}" for i in range(80)} | {"bad": "q", "worse": "zz"}
    put(client, texts)
    call(client, model="new")
    until(lambda: len(look(client)["failed"]) == 2, "never named")
    until(lambda: look(client)["embedded"] == 80, "the others")
    found = look(client)
    assert (found["phase"], found["failed"].keys()) == ("embedding", {"bad", "worse"})
    assert "not finite" in found["failed"]["worse"]
    assert "2 documents" in call(client, "cut-over", status=409)["error"]["message"]
    shown = 'mexma_migration_documents{collection="notes",state="failed"} 2.0'
    assert shown in client.get("/metrics").text
    put(client, {"bad": "better"})
    client.delete(f"{NOTES}/documents/worse")
    texts["bad"] = "better"
    del texts["worse"]
    call(client, "cut-over")
    check(client, new, texts)


def test_a_migration_whose_encoder_is_gone_waits_for_it(make_client, encoders, tmp_path):
    old, new = encoders
    first = make_client(old, further=[new], data_dir=tmp_path / "kept")
    first.put(NOTES)
    put(first, texts := {str(i): f"text {i}" for i in range(40)})
    call(first, model="new")
    until_done(first)
    call(first, "cut-over")
    first.__exit__(None, None, None)
    second = make_client(new, data_dir=tmp_path / "kept")
    put(second, {"x": "x"})
    texts["x"] = "x"
    found = look(second)
    assert old.fingerprint in found["blocked"]
    assert found["embedded"] == 40
    assert "start with its model" in call(second, "rollback", status=409)["error"]["message"]
    check(second, new, texts)
    second.__exit__(None, None, None)
    third = make_client(new, further=[old], data_dir=tmp_path / "kept")
    until_done(third)
    call(third, "rollback")
    check(third, old, texts)


def test_requests_to_another_encoder_go_first_and_cannot_stop_it(client, encoders, monkeypatch):
    """While the other engine is busy a batch waits, but no longer than it has to."""
    old, new = encoders
    texts = {str(i): f"text {i}" for i in range(100)}
    put(client, texts)
    monkeypatch.setattr(migrator, "GIVE_WAY_S", 600.0)
    old.gate.clear()
    asked = threading.Thread(
        target=client.post, args=("/v1/embeddings",), kwargs={"json": {"input": "x"}}
    )
    ran = len(old.batches)
    asked.start()
    until(lambda: len(old.batches) > ran, "the request never ran")
    before = len(new.batches)
    call(client, model="new")
    for _ in range(20):
        assert look(client, sample=0)["embedded"] == 0
    assert len(new.batches) == before
    old.gate.set()
    asked.join()
    until_done(client)
    # Busy without an end, it goes on at the pace of GIVE_WAY_S.
    monkeypatch.setattr(migrator, "GIVE_WAY_S", 0.05)
    put(client, {"late": "late"})
    old.gate.clear()
    asked = threading.Thread(
        target=client.post, args=("/v1/embeddings",), kwargs={"json": {"input": "y"}}
    )
    asked.start()
    until_done(client)
    old.gate.set()
    asked.join()
    call(client, "cut-over")
    check(client, new, texts | {"late": "late"})


def test_writes_and_searches_through_changes_of_roles(client, encoders):
    """Four writers and two searchers, while somebody cuts over and back: no write is lost, no request
    fails, and every search is answered by the encoder it names."""
    old, new = encoders
    by = {e.fingerprint: e for e in encoders}
    put(client, {f"s{i}": f"text {i}" for i in range(60)})
    texts, problems, seen = {f"s{i}": f"text {i}" for i in range(60)}, [], set()
    call(client, model="new")
    stop = threading.Event()

    def write(who: int) -> None:
        choose = random.Random(who)
        mine: dict[str, str] = {}
        for n in range(40):
            ids = [f"{who}-{i}" for i in choose.sample(range(9), 3)]
            if n % 5 == 4:
                for id in ids:
                    client.delete(f"{NOTES}/documents/{id}")
                    mine.pop(id, None)
            else:
                added = {id: f"{id} of {n}" for id in ids}
                if put(client, added)["failed"]:
                    problems.append("a write failed")
                mine |= added
        texts.update(mine)

    def search() -> None:
        while not stop.is_set():
            response = client.post(f"{NOTES}/search", json={"queries": ["asked"], "k": 5})
            if response.status_code != 200:
                problems.append(response.text)
                return
            encoder = by[response.json()["fingerprint"]]
            seen.add(encoder.fingerprint)
            for hit in response.json()["results"][0]:
                cosine = float(encoder.vector(hit["text"]) @ encoder.vector("asked"))
                if abs(cosine - hit["cosine"]) > 1e-5:
                    problems.append(hit)

    def guarded(work: Callable, *arguments) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            problems.append(error)
            raise

    writers = [threading.Thread(target=guarded, args=(write, who)) for who in range(4)]
    searchers = [threading.Thread(target=guarded, args=(search,)) for _ in range(2)]
    for thread in [*writers, *searchers]:
        thread.start()
    turns = 0
    while any(thread.is_alive() for thread in writers) or turns < 4:
        call(client, "cut-over" if turns % 2 == 0 else "rollback")
        turns += 1
    stop.set()
    for thread in [*writers, *searchers]:
        thread.join()
    assert not problems
    assert seen == {old.fingerprint, new.fingerprint}
    for encoder, verb in ((old, "rollback"), (new, "cut-over"), (old, "rollback")):
        if look(client)["serving"] != encoder.fingerprint:
            call(client, verb)
        check(client, encoder, texts)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> tuple[Path, Path]:
    """Two real encoders of one kind that have nothing to do with each other."""
    root = tmp_path_factory.mktemp("artifacts")
    for seed, name in enumerate(("old", "new")):
        tiny_artifact(root / name, seed=seed, name=name)
    return root / "old", root / "new"


def test_two_real_encoders_and_their_overlap(make_client, artifacts):
    old, new = (OnnxEncoder(path, threads=1) for path in artifacts)
    client = make_client(old, further=[new])
    client.put(NOTES)
    texts = list(dict.fromkeys(SENTENCES[::9]))[:150]
    put(client, {str(i): text for i, text in enumerate(texts)})
    call(client, model="new")
    until_done(client)
    report = look(client, k=8, sample=150)["report"]
    neighbours = []
    for encoder in (old, new):
        vectors = encode(encoder, texts).astype(np.float64)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -2)
        neighbours.append([set(row) for row in np.argsort(-cosines, axis=1)[:, :8]])
    shared = [len(a & b) / 8 for a, b in zip(*neighbours, strict=True)]
    assert (report["k"], report["queries"], report["documents"]) == (8, 150, 150)
    # Near-ties at the eighth place may fall the other way in float32: one or two of 1,200.
    assert report["overlap"] == pytest.approx(np.mean(shared), abs=2 / 1200)
    assert 0.05 < report["overlap"] < 0.95
    assert report["recall"] == 1
    before = client.post(f"{NOTES}/search", json={"queries": texts[:20], "k": 3}).json()
    call(client, "cut-over")
    after = client.post(f"{NOTES}/search", json={"queries": texts[:20], "k": 3}).json()
    for answer, encoder in ((before, old), (after, new)):
        assert answer["fingerprint"] == encoder.fingerprint
        vectors = encode(encoder, texts)
        for i, hits in enumerate(answer["results"]):
            assert hits[0]["text"] == texts[i]
            best = np.sort(vectors[:20][i] @ vectors.T)[::-1][:3]
            np.testing.assert_allclose([h["cosine"] for h in hits], best, atol=1e-4)


def serve(folder: Path, artifacts: tuple[Path, Path]) -> Server:
    settings = {"model": artifacts[0], "further_models": artifacts[1], "demo": "false"}
    server = start_server(folder, **settings)
    wait_until_ready(server)
    return server


def test_killed_again_and_again_it_is_resumed(tmp_path, artifacts):
    """The service is killed while it embeds, while it is written to, and around each cut-over."""
    choose = random.Random(7)
    server = serve(tmp_path, artifacts)
    client = httpx.Client(base_url=server.url, timeout=60)
    client.put(NOTES)
    texts = {str(i): text for i, text in enumerate(dict.fromkeys(SENTENCES))}
    ids = [*texts]
    for start in range(0, len(ids), 1000):
        put(client, {id: texts[id] for id in ids[start : start + 1000]})
    call(client, model="new")
    done, progress, cut_overs = 0, [], 0
    for round_ in range(8):
        added = {f"round-{round_}-{i}": f"{SENTENCES[i]} {round_}" for i in range(20)}
        put(client, added)
        texts |= added
        gone = choose.choice([*texts])
        client.delete(f"{NOTES}/documents/{gone}")
        del texts[gone]
        if round_ >= 4:
            until_done(client)
            serving = look(client, sample=0)["serving"]
            call(
                client, "rollback" if look(client, sample=0)["phase"] == "cut_over" else "cut-over"
            )
            cut_overs += 1
            assert look(client, sample=0)["serving"] != serving
        else:
            until_embedded(client, done + 100)
        found = look(client, sample=0)
        done, serving = found["embedded"], found["serving"]
        server.process.kill()
        server.process.wait()
        server = serve(tmp_path, artifacts)
        client = httpx.Client(base_url=server.url, timeout=60)
        found = look(client, sample=0)
        assert found["embedded"] >= done - 1, "what was embedded is not embedded again"
        assert found["serving"] == serving
        progress.append(found["embedded"])
    assert cut_overs == 4
    call(client, "cut-over")
    assert call(client, "retire")["count"] == len(texts)
    seen, cursor = {}, None
    while not seen or cursor:
        page = client.post(f"{NOTES}/documents/scroll", json={"limit": 1000, "cursor": cursor})
        seen |= {d["id"]: d["text"] for d in page.json()["documents"]}
        cursor = page.json()["cursor"]
    assert seen == texts
    encoder = OnnxEncoder(artifacts[1], threads=1)
    asked = choose.sample([*texts.values()], 30)
    vectors = encode(encoder, asked)
    answer = client.post(f"{NOTES}/search", json={"queries": asked, "k": 1}).json()
    assert answer["fingerprint"] == encoder.fingerprint
    for text, vector, [hit] in zip(asked, vectors, answer["results"], strict=True):
        assert hit["cosine"] == pytest.approx(1, abs=1e-4)
        same = hit["text"] == text
        assert same or float(encode(encoder, [hit["text"]])[0] @ vector) > 1 - 1e-4
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_the_command_migrates_goes_on_and_retires(tmp_path, artifacts, make_client, capsys):
    old, new = (OnnxEncoder(path, threads=1) for path in artifacts)
    client = make_client(old)
    client.put(NOTES)
    texts = list(dict.fromkeys(SENTENCES))[:300]
    put(client, {str(i): text for i, text in enumerate(texts)})
    client.__exit__(None, None, None)
    data = str(tmp_path / "data")
    # Begun by the command, cut off, gone on with by the command.
    with closing(LocalStore(tmp_path / "data")) as store:
        store.migrations.begin("notes", 64, new.fingerprint)
        rows = store.migrations.work("notes", 100)
        vectors = Embedded(encode(new, [row.text for row in rows]), {})
        store.migrations.take("notes", new.fingerprint, rows, vectors)
    index_command.main(["--data", data, "migrate", "notes", str(artifacts[1])])
    said = capsys.readouterr()
    assert f"300 of 300 documents embedded by {new.fingerprint}" in said.out
    assert f"overlap@10 with {old.fingerprint}: 0." in said.out
    assert "100/300" in said.err, "what was embedded is not embedded again"
    index_command.main(["--data", data, "migrate", "notes", str(artifacts[1]), "--cut-over"])
    assert "cut over" in capsys.readouterr().out
    client = make_client(new)
    answer = client.post(f"{NOTES}/search", json={"queries": texts[:1], "k": 1}).json()
    assert (answer["fingerprint"], answer["results"][0][0]["text"]) == (new.fingerprint, texts[0])
    client.__exit__(None, None, None)
    index_command.main(["--data", data, "migrate", "notes", str(artifacts[1]), "--retire"])
    assert len(list((tmp_path / "data").glob("notes.*"))) == 1
    with pytest.raises(SystemExit, match="no collection 'nobody'"):
        index_command.main(["--data", data, "migrate", "nobody", str(artifacts[1])])
    for end in ([], ["--cut-over"], ["--retire"]):
        index_command.main(["--data", data, "migrate", "notes", str(artifacts[1]), *end])
        said = f"notes: {new.fingerprint} answers already, and nothing is beside it\n"
        assert capsys.readouterr().out.endswith(said)


def test_the_command_asked_again_is_done_and_leads_back(tmp_path, artifacts, capsys):
    """Every write of the time after the cut-over is there after the way back, and then once more."""
    old, new = (OnnxEncoder(path, threads=1) for path in artifacts)
    third = tiny_artifact(tmp_path / "third", seed=7).path
    data, root = str(tmp_path / "data"), tmp_path / "data"

    def put(encoder: OnnxEncoder, texts: list[str]) -> None:
        documents = [Document(text, text, "en") for text in texts]
        store.upsert("notes", documents, encode(encoder, texts), encoder.fingerprint)

    def migrate(model: Path, *ends: str) -> str:
        index_command.main(["--data", data, "migrate", "notes", str(model), *ends])
        return capsys.readouterr().out

    texts = list(dict.fromkeys(SENTENCES))[:40]
    with closing(LocalStore(root)) as store:
        store.create("notes", 64, old.fingerprint, encode(old, SENTENCES_KEPT))
        put(old, texts[:20])
    assert "cut over; serve" in migrate(artifacts[1], "--cut-over")
    for ends in ([], ["--cut-over"]):
        already = f"{new.fingerprint} answers already; vectors of {old.fingerprint} are kept"
        assert already in migrate(artifacts[1], *ends)
    with pytest.raises(
        SystemExit, match=r"POST \.\.\./migration/retire drops those beside.*--retire"
    ):
        migrate(third)
    with closing(LocalStore(root)) as store:
        put(new, texts[20:30])
    assert "30 of 30 documents" in migrate(artifacts[0])
    assert "rolled back; serve" in migrate(artifacts[0], "--cut-over")
    assert f"{old.fingerprint} answers already" in migrate(artifacts[0], "--cut-over")
    with pytest.raises(SystemExit, match=r"DELETE \.\.\./migration drops those beside.*--retire"):
        migrate(third)
    with closing(LocalStore(root)) as store:
        assert store.describe("notes").fingerprint == old.fingerprint
        put(old, texts[30:])
        [[hit]] = store.search("notes", encode(old, texts[25:26]), Query(k=1), old.fingerprint)
        assert (hit.id, store.describe("notes").count) == (texts[25], 40)
    assert "cut over; serve" in migrate(artifacts[1], "--cut-over")
    assert f"40 documents, served by {old.fingerprint}" in migrate(artifacts[0], "--retire")
    assert len(list(root.glob("notes.*"))) == 1
    assert "cut over; serve" in migrate(third, "--cut-over"), "as the refusal said"


def test_the_command_embeds_anew_where_the_encoder_is_not_what_it_was(tmp_path, artifacts, capsys):
    encoder = OnnxEncoder(artifacts[0], threads=1)
    now = encode(encoder, SENTENCES_KEPT)
    text, command = SENTENCES[0], ["--data", str(tmp_path / "data"), "migrate", "notes"]
    with closing(LocalStore(tmp_path / "data")) as store:
        store.create("notes", 64, encoder.fingerprint, now[::-1].copy())
        other = encode(encoder, [SENTENCES[5]])
        store.upsert("notes", [Document("1", text, "en")], other, encoder.fingerprint)
    index_command.main([*command, str(artifacts[0])])
    assert "1 of 1 documents" in capsys.readouterr().out
    for _ in range(2):
        index_command.main([*command, str(artifacts[0]), "--cut-over"])
    assert "cut over; serve" in (said := capsys.readouterr().out)
    assert "answers already" in said
    with closing(LocalStore(tmp_path / "data")) as store:
        query = encode(encoder, [text])
        [[hit]] = store.search("notes", query, Query(k=1), encoder.fingerprint)
        assert hit.cosine == pytest.approx(1, abs=1e-5)
        assert np.allclose(store.canaries("notes"), now, atol=1e-5)


def test_every_block_of_the_guide_runs_and_its_table_names_the_fields(tmp_path, artifacts):
    guide = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    serving, start, shown, cut_over, rollback, abandon, retire, offline, on_milvus = blocks
    assert "http://milvus" in on_milvus, "run by store/milvus/test_served.py"
    assert serving.startswith("MEXMA_FURTHER_MODELS=")
    server = serve(tmp_path, artifacts)
    client = httpx.Client(base_url=server.url, timeout=60)

    def run(block: str) -> dict:
        command = block.replace("http://127.0.0.1:8080", server.url)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout or "{}")
        assert "error" not in answer, f"{block}\n{answer}"
        return answer

    client.put(NOTES)
    put(client, {str(i): text for i, text in enumerate(SENTENCES[:60])})
    old = run(start)["serving"]
    until_done(client)
    found = run(shown)
    fields = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", guide, re.MULTILINE)))
    assert len(fields) >= 10
    assert set(fields) <= found.keys()
    assert {"overlap", "recall"} <= found["report"].keys()
    new = run(cut_over)["serving"]
    assert run(rollback)["serving"] == old
    run(abandon)
    assert call(client, method="get", status=404)
    run(start)
    run(cut_over)
    assert run(retire)["fingerprint"] == new
    client.put("/v1/collections/other", params={"model": "old"})
    server.process.terminate()
    assert server.process.wait(60) == 0
    command = offline.replace("--data data", f"--data {tmp_path / 'data'}").split()
    command = [w.replace("models/new", str(artifacts[0])) for w in command]
    assert command[0] == ".venv/bin/mexma-index"
    index_command.main(command[1:])
    with closing(LocalStore(tmp_path / "data")) as store:
        assert store.describe("notes").fingerprint == old

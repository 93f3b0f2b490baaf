"""Collections through HTTP: what is stored, what is found, what is refused."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import pytest

from service.store.local import LocalStore
from service.store.protocol import Document
from tests.fakes import FakeEncoder

DOCUMENTS = [
    {"id": "en-1", "text": "I have two cats.", "lang": "en"},
    {"id": "de-1", "text": "Ich habe zwei Katzen.", "lang": "de", "metadata": {"page": 3}},
    {"id": "fi-1", "text": "Minulla on kaksi kissaa.", "lang": "fi"},
    {"id": "pt-1", "text": "Eu tenho dois gatos.", "lang": "pt-br"},
]


@pytest.fixture
def cats(client):
    assert client.put("/v1/collections/cats").status_code == 200
    response = client.post("/v1/collections/cats/documents", json={"documents": DOCUMENTS})
    assert response.status_code == 200, response.text
    return client


def search(client, **body):
    response = client.post("/v1/collections/cats/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client, status, path="/v1/collections/cats/search", method="post", **body):
    response = client.request(method, path, json=body)
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_the_life_of_a_collection(client):
    assert client.get("/v1/collections").json() == {"collections": []}
    made = client.put("/v1/collections/cats").json()
    assert (made["name"], made["dimensions"], made["count"]) == ("cats", 16, 0)
    assert made["fingerprint"] == FakeEncoder().fingerprint
    assert client.put("/v1/collections/cats").json() == made, "creating again finds it"
    assert client.get("/v1/collections").json()["collections"] == [made]
    assert client.delete("/v1/collections/cats").status_code == 204
    message = refused(client, 404, "/v1/collections/cats", "get")
    assert "cats" in message


def test_a_wish_that_a_collection_cannot_have_is_not_passed_over(client):
    assert "expected no body" in refused(client, 422, "/v1/collections/c", "put", dimensions=5)
    assert client.get("/v1/collections/c").status_code == 404
    assert client.put("/v1/collections/c", json={}).status_code == 200


def test_any_id_names_its_document_in_a_path(cats):
    ids = [
        "a/b",
        "a/",
        "a\nb",
        "\n",
        "a\r\nb",
        "../a",
        "a?b#c",
        "é",
        "\0",
        " ",
        "count",
        "猫" * 170,
    ]
    documents = [{"id": i, "text": "x"} for i in ids]
    cats.post("/v1/collections/cats/documents", json={"documents": documents}).raise_for_status()
    for i in ids:
        path = f"/v1/collections/cats/documents/{quote(i, safe='')}"
        assert cats.get(path).json()["id"] == i
        assert cats.delete(path).status_code == 204, i
        assert cats.get(path).status_code == 404


def test_a_former_code_of_a_language_is_todays_wherever_it_stands(cats):
    document = {"id": "he-1", "text": "יש לי שני חתולים", "lang": "IW-il"}
    upserted = cats.post("/v1/collections/cats/documents", json={"documents": [document]}).json()
    assert upserted["results"][0]["lang"] == "he-IL"
    for code in ("iw", "he", "he-IL", "iw-IL"):
        found = search(cats, queries=["cats"], languages=[code])["results"][0]
        assert [hit["id"] for hit in found] == ["he-1"], code
    for code in ("iw", "he"):
        hits = search(cats, queries=["x"], query_language=code, exclude_query_language=True)
        assert "he-1" not in [hit["id"] for hit in hits["results"][0]], code


def test_a_language_has_one_code_wherever_it_stands_and_a_name_is_none(cats):
    document = {"id": "de-9", "text": "Ich habe zwei Katzen.", "lang": "ger_AT"}
    upserted = cats.post("/v1/collections/cats/documents", json={"documents": [document]}).json()
    assert upserted["results"][0]["lang"] == "de-AT"
    for code in ("deu", "de", "de_AT"):
        body = search(cats, queries=["cats"], languages=[code])
        assert "de-9" in [hit["id"] for hit in body["results"][0]], code
    for code in ("deu", "ger", "de"):
        hits = search(cats, queries=["x"], query_language=code, exclude_query_language=True)
        assert "de-9" not in [hit["id"] for hit in hits["results"][0]], code
    assert "'de' may be meant" in refused(cats, 422, queries=["x"], languages=["german"])
    assert "'ja' may be meant" in refused(cats, 422, queries=["x"], query_language="jp")
    document["lang"] = "english"
    upserted = cats.post("/v1/collections/cats/documents", json={"documents": [document]}).json()
    assert "'en' may be meant" in upserted["results"][0]["error"]["message"]


def test_what_was_stored_under_a_language_that_is_none_now_is_read(make_client, tmp_path):
    store, encoder = LocalStore(tmp_path / "data"), FakeEncoder()
    client = make_client(store=store)
    client.put("/v1/collections/cats")
    old = Document(id="1", text="Zwei Katzen.", lang="german", metadata={})
    store.upsert("cats", [old], encoder.vector(old.text)[None], encoder.fingerprint)
    assert client.get("/v1/collections/cats/documents/1").json()["lang"] == "german"
    assert client.get("/v1/collections/cats").json()["languages"] == {"german": 1}
    assert search(client, queries=["x"], per_language=True)["results"][0][0]["lang"] == "german"
    scrolled = client.post("/v1/collections/cats/documents/scroll", json={}).json()
    assert scrolled["documents"][0]["lang"] == "german"


@pytest.mark.parametrize("step", [".", ".."])
def test_an_id_with_which_a_client_would_drop_the_collection_is_refused(cats, step):
    says = refused(
        cats, 422, "/v1/collections/cats/documents", documents=[{"id": step, "text": "x"}]
    )
    assert says.startswith("documents.0.id: expected an id other than '.' and '..'")


def test_numbers_in_metadata_are_exact_as_far_as_it_is_promised(client):
    client.put("/v1/collections/c")
    for number, kept in [
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        (2**64, float(2**64)),
        (-(2**63) - 1, -float(2**63)),
        (5e-324, 5e-324),
    ]:
        document = {"id": "1", "text": "x", "metadata": {"n": number}}
        client.post("/v1/collections/c/documents", json={"documents": [document]})
        found = client.get("/v1/collections/c/documents/1").json()["metadata"]["n"]
        assert (found, type(found)) == (kept, type(kept))
    schema = client.get("/openapi.json").json()["components"]["schemas"]["DocumentIn"]
    assert "-2^63 to 2^64 - 1" in schema["properties"]["metadata"]["description"]


def test_no_metadata_is_none_given(cats):
    document = {"id": "de-1", "text": "x", "lang": None, "metadata": None}
    body = cats.post("/v1/collections/cats/documents", json={"documents": [document]}).json()
    assert body["updated"] == 1
    assert cats.get("/v1/collections/cats/documents/de-1").json()["metadata"] == {}


@pytest.mark.parametrize("name", ["a b", "x" * 65, "..", "ä", "a.b"])
def test_names_are_letters_digits_and_dashes(client, name):
    assert client.put(f"/v1/collections/{name}").status_code in (404, 405, 422)
    assert client.get("/v1/collections").json() == {"collections": []}


def test_upsert_says_what_became_of_each_document(cats):
    again = [
        {"id": "en-1", "text": "I have three cats.", "lang": "en"},
        {"id": "new", "text": "Where can I buy another one of these?"},
        {"id": "bad", "text": ""},
        {"id": "long", "text": "x" * 100, "lang": "en"},
    ]
    body = cats.post("/v1/collections/cats/documents", json={"documents": again}).json()
    assert [r["status"] for r in body["results"]] == ["updated", "created", "failed", "created"]
    assert (body["created"], body["updated"], body["failed"]) == (2, 1, 1)
    assert body["results"][2]["error"]["code"] == "empty_text"
    assert "item 2" in body["results"][2]["error"]["message"]
    assert body["results"][3]["truncation"]["tokens_used"] == 64
    assert body["results"][1]["lang"] == "en", "detected"
    found = cats.get("/v1/collections/cats/documents/en-1").json()
    assert found == {"id": "en-1", "text": "I have three cats.", "lang": "en", "metadata": {}}
    assert cats.get("/v1/collections/cats").json()["count"] == 6
    with_metadata = "/v1/collections/cats/documents/de-1"
    assert cats.get(with_metadata).json()["metadata"] == {"page": 3}
    document = {"id": "de-1", "text": "Ich habe zwei Katzen."}
    cats.post("/v1/collections/cats/documents", json={"documents": [document]})
    assert cats.get(with_metadata).json()["metadata"] == {}, "replaced as a whole"


def test_a_language_that_is_no_tag_fails_its_document_alone_and_says_so_in_words(cats):
    sent = [
        {"id": "good", "text": "Two cats.", "lang": "en"},
        {"id": "en-1", "text": "I have three cats.", "lang": "en GB"},
        {"id": "long", "text": "Three cats.", "lang": "en-" + "x" * 99},
        {"id": "both", "text": "", "lang": ""},
    ]
    body = cats.post("/v1/collections/cats/documents", json={"documents": sent}).json()
    assert [r["status"] for r in body["results"]] == ["created", "failed", "failed", "failed"]
    assert {r["error"]["code"] for r in body["results"][1:]} == {"invalid_language_tag"}
    assert body["results"][1]["error"]["message"] == (
        "item 1: lang: expected a BCP 47 tag such as 'fi' or 'pt-BR', found 'en GB'"
    )
    assert len(body["results"][2]["error"]["message"]) < 150
    there = cats.get("/v1/collections/cats/documents/en-1").json()
    assert there["text"] == "I have two cats.", "what was there stays"


def test_a_search_says_which_of_its_languages_no_document_has(cats):
    found = search(cats, queries=["x"], languages=["sv", "pt", "pt-PT", "fi"])
    assert {h["lang"] for h in found["results"][0]} == {"fi", "pt-BR"}
    assert found["languages_without_documents"] == ["pt-PT", "sv"]
    assert search(cats, queries=["x"])["languages_without_documents"] == []


def test_a_document_found_by_its_own_text_has_cosine_one(cats):
    for document in DOCUMENTS:
        (hits,) = search(cats, queries=[document["text"]], k=1)["results"]
        assert hits[0]["id"] == document["id"]
        assert hits[0]["cosine"] == pytest.approx(1, abs=1e-6)
        assert hits[0]["metadata"] == document.get("metadata", {})


def test_text_and_vector_searches_agree(cats):
    text = "Ich habe zwei Katzen."
    by_text = search(cats, queries=[text], k=4)
    by_vector = search(cats, vectors=[(3 * FakeEncoder().vector(text)).tolist()], k=4)
    assert [h["id"] for h in by_text["results"][0]] == [h["id"] for h in by_vector["results"][0]]
    assert by_text["fingerprint"] == FakeEncoder().fingerprint


def test_filters_by_language(cats):
    def languages(**body):
        return sorted(h["lang"] for h in search(cats, k=9, **body)["results"][0])

    assert languages(queries=["Katzen"]) == ["de", "en", "fi", "pt-BR"]
    assert languages(queries=["Katzen"], languages=["fi", "pt"]) == ["fi", "pt-BR"]
    assert languages(queries=["Katzen"], languages=["PT-br"]) == ["pt-BR"]
    text = "Ich habe heute zwei große Katzen im Garten gesehen."
    assert search(cats, queries=[text])["query_languages"] == ["de"]
    assert "de" not in languages(queries=[text], exclude_query_language=True)
    given = languages(queries=[text], exclude_query_language=True, query_language="fi")
    assert given == ["de", "en", "pt-BR"]
    vector = FakeEncoder().vector("x").tolist()
    excluded = languages(vectors=[vector], exclude_query_language=True, query_language="pt")
    assert excluded == ["de", "en", "fi"]


def test_per_language_gives_k_in_each(cats):
    hits = search(cats, queries=["Katzen"], k=1, per_language=True)["results"][0]
    assert sorted(h["lang"] for h in hits) == ["de", "en", "fi", "pt-BR"]


def test_margin_ranks_by_the_margin_and_keeps_the_cosine(cats):
    hits = search(cats, queries=["Katzen"], score="margin", k=4)["results"][0]
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
    query = FakeEncoder().vector("Katzen")
    for hit in hits:
        cosine = float(query @ FakeEncoder().vector(hit["text"]))
        assert hit["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert hit["score"] != hit["cosine"]


def test_the_metrics_count_documents_of_collections_that_exist(cats):
    assert 'mexma_collection_documents{collection="cats"} 4.0' in cats.get("/metrics").text
    state = 'mexma_collection_index{collection="cats",state="exact"} 1.0'
    assert state in cats.get("/metrics").text
    cats.delete("/v1/collections/cats")
    assert "mexma_collection_index{" not in cats.get("/metrics").text
    assert "mexma_collection_documents{" not in cats.get("/metrics").text


def test_deleting(cats):
    body = {"ids": ["en-1", "nobody"]}
    response = cats.request("delete", "/v1/collections/cats/documents", json=body)
    assert response.json() == {"deleted": 1}
    assert refused(cats, 404, "/v1/collections/cats/documents/en-1", "get")
    assert "en-1" not in str(search(cats, queries=["I have two cats."], k=9))


def test_deleting_one(cats):
    assert cats.delete("/v1/collections/cats/documents/en-1").status_code == 204
    assert refused(cats, 404, "/v1/collections/cats/documents/en-1", "delete")
    assert cats.get("/v1/collections/cats").json()["count"] == 3


def test_a_query_that_was_cut_has_a_receipt(cats):
    answer = search(cats, queries=["short", "x" * 100])
    receipt = {"tokens_seen": 102, "tokens_used": 64, "cut_at": 62}
    assert answer["query_truncations"] == {"1": receipt}
    assert "limit is 64" in refused(cats, 422, queries=["x" * 100], truncate=False)
    document = {"documents": [{"id": "long", "text": "x" * 100}], "truncate": False}
    outcome = cats.post("/v1/collections/cats/documents", json=document).json()["results"][0]
    assert outcome["error"]["code"] == "text_too_long"


def test_what_is_refused(cats):
    assert "found neither" in refused(cats, 422)
    vector = FakeEncoder().vector("x").tolist()
    assert "found both" in refused(cats, 422, queries=["x"], vectors=[vector])
    assert "item 1 is an empty" in refused(cats, 422, queries=["x", ""])
    assert "item 1 has 3 components" in refused(cats, 422, vectors=[vector, [1, 2, 3]])
    assert "no direction" in refused(cats, 422, vectors=[[0] * 16])
    assert "no direction" in refused(cats, 422, vectors=[[1e200] * 16])
    needs = refused(cats, 422, vectors=[vector], exclude_query_language=True)
    assert "query_language" in needs
    assert "per_langauge" in refused(cats, 422, queries=["x"], per_langauge=True)
    assert "k:" in refused(cats, 422, queries=["x"], k=0)
    assert "k:" in refused(cats, 422, queries=["x"], k="3")
    assert "exact:" in refused(cats, 422, queries=["x"], exact="yes")
    expected = "expected a BCP 47 tag such as 'fi' or 'pt-BR', found"
    for wrong in ("not a tag", "pt BR", ""):
        message = refused(cats, 422, queries=["x"], languages=["fi", wrong])
        assert message == f"languages.1: {expected} {wrong!r}"
    message = refused(cats, 422, queries=["x"], query_language="f")
    assert message == f"query_language: {expected} 'f'"
    nowhere = "/v1/collections/nowhere"
    assert "nowhere" in refused(cats, 404, f"{nowhere}/search", queries=["x"])
    assert "nowhere" in refused(cats, 404, f"{nowhere}/documents", documents=DOCUMENTS)
    assert "nowhere" in refused(cats, 404, nowhere, "delete")


def test_a_search_for_more_hits_than_an_answer_may_hold_is_refused(make_client):
    client = make_client(max_search_hits=30)
    client.put("/v1/collections/cats")
    client.post("/v1/collections/cats/documents", json={"documents": DOCUMENTS})
    assert search(client, queries=["x"] * 3, k=10)
    message = refused(client, 422, queries=["x"] * 3, k=11)
    assert message == "the search asks for up to 33 hits; the limit is 30"
    assert "40 hits" in refused(client, 422, queries=["x"], k=10, per_language=True)


def test_another_encoders_collection_is_refused_with_both_fingerprints(make_client, tmp_path):
    first = make_client(data_dir=tmp_path / "shared")
    first.put("/v1/collections/cats")
    first.post("/v1/collections/cats/documents", json={"documents": DOCUMENTS})
    first.__exit__(None, None, None)  # the process ends; its data stays
    other = FakeEncoder(name="another")
    second = make_client(other, data_dir=tmp_path / "shared")
    for message in (
        refused(second, 409, queries=["x"]),
        refused(second, 409, "/v1/collections/cats/documents", documents=DOCUMENTS),
        refused(second, 409, "/v1/collections/cats", "put"),
    ):
        assert other.fingerprint in message
        assert FakeEncoder().fingerprint in message
    assert second.get("/v1/collections/cats").json()["count"] == 4, "nothing is lost"


def test_collections_survive_a_restart(make_client, tmp_path):
    first = make_client(data_dir=tmp_path / "kept")
    first.put("/v1/collections/cats")
    first.post("/v1/collections/cats/documents", json={"documents": DOCUMENTS})
    before = search(first, queries=["Katzen"], k=4, score="margin")
    first.__exit__(None, None, None)
    second = make_client(data_dir=tmp_path / "kept")
    assert search(second, queries=["Katzen"], k=4, score="margin") == before


def test_vectors_in_the_store_are_those_of_the_encoder(cats):
    hits = search(cats, queries=["anything"], k=4)["results"][0]
    query = FakeEncoder().vector("anything")
    expected = sorted(
        (float(query @ FakeEncoder().vector(d["text"])) for d in DOCUMENTS), reverse=True
    )
    np.testing.assert_allclose([h["cosine"] for h in hits], expected, atol=1e-5)


def test_filters_count_scroll_and_delete_by_filter(cats):
    third = {"field": "page", "eq": 3}
    [hits] = search(cats, queries=["Katzen"], filter=third)["results"]
    assert [h["id"] for h in hits] == ["de-1"]
    [hits] = search(cats, queries=["Katzen"], filter={"not": third}, languages=["fi", "de"])[
        "results"
    ]
    assert [h["id"] for h in hits] == ["fi-1"]
    documents = "/v1/collections/cats/documents"
    assert cats.post(f"{documents}/count", json={}).json() == {"count": 4}
    assert cats.post(f"{documents}/count", json={"filter": third}).json() == {"count": 1}
    seen, cursor = [], None
    while not seen or cursor:
        page = cats.post(f"{documents}/scroll", json={"limit": 3, "cursor": cursor}).json()
        seen, cursor = seen + page["documents"], page["cursor"]
    assert [d["id"] for d in seen] == [d["id"] for d in DOCUMENTS]
    assert seen[1]["metadata"] == {"page": 3}
    body = {"filter": third, "languages": ["de"]}
    assert cats.request("delete", documents, json=body).json() == {"deleted": 1}
    assert cats.request("delete", documents, json=body).json() == {"deleted": 0}
    assert cats.post(f"{documents}/count", json={}).json() == {"count": 3}


def test_what_filters_refuse(cats):
    documents = "/v1/collections/cats/documents"
    bad = {"and": [{"field": "page", "gte": [3]}]}
    for status_of in (
        lambda: refused(cats, 422, queries=["x"], filter=bad),
        lambda: refused(cats, 422, f"{documents}/count", filter=bad),
        lambda: refused(cats, 422, f"{documents}/scroll", filter=bad),
        lambda: refused(cats, 422, documents, "delete", filter=bad),
    ):
        assert "filter.and[0].gte: expected text, a finite number" in status_of()
    assert "found none" in refused(cats, 422, documents, "delete")
    both = refused(cats, 422, documents, "delete", ids=["en-1"], languages=["en"])
    assert "found ids beside a selection" in both
    assert "cursor" in refused(cats, 422, f"{documents}/scroll", cursor="beginning")
    assert "limit" in refused(cats, 422, f"{documents}/scroll", limit=0)
    assert "nowhere" in refused(cats, 404, "/v1/collections/nowhere/documents/count")
    assert cats.get("/v1/collections/cats").json()["count"] == 4


def test_a_search_explains_itself(cats):
    plain = search(cats, queries=["Katzen"], score="margin", k=2)
    assert plain["explanations"] is None
    assert {h["mutual"] for h in plain["results"][0]} == {None}
    told = search(cats, queries=["Katzen"], score="margin", k=2, explain=True, mutual=True)
    [explanation] = told["explanations"]
    assert explanation["path"] == "exact"
    assert (explanation["documents"], explanation["matching"]) == (4, 4)
    assert {h["mutual"] for h in told["results"][0]} <= {True, False}
    for hit, terms in zip(told["results"][0], explanation["terms"], strict=True):
        around = max((terms["around_query"] + terms["around_document"]) / 2, 0.05)
        assert hit["score"] == pytest.approx(terms["cosine"] / around, rel=1e-4)


def test_snapshots(cats):
    snapshots = "/v1/collections/cats/snapshots"
    assert cats.get(snapshots).json() == {"snapshots": []}
    made = cats.post(snapshots).json()
    assert (made["collection"], made["count"], made["dim"]) == ("cats", 4, 16)
    assert cats.get(snapshots).json() == {"snapshots": [made]}
    cats.delete("/v1/collections/cats")
    assert refused(cats, 404, snapshots)
    restored = cats.post(f"{snapshots}/{made['id']}/restore")
    assert restored.json()["count"] == 4, restored.text
    assert search(cats, queries=["I have two cats."], k=1)["results"][0][0]["id"] == "en-1"
    assert cats.delete(f"{snapshots}/{made['id']}").status_code == 204
    assert "no snapshot" in refused(cats, 404, f"{snapshots}/{made['id']}/restore")
    assert "no snapshot" in refused(cats, 404, f"{snapshots}/x", "delete")

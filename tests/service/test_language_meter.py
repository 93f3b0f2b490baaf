"""Counts per language add up, whatever the sizes of requests; fertility is tokens over characters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma.text import Tokens
from service.language_meter import MOST_PER_REQUEST, LanguageMeter
from service.metrics import Metrics


class Detector:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def detect(self, text: str) -> str:
        self.seen.append(text)
        return text[:2]


def tokens(count: int) -> Tokens:
    return Tokens(np.zeros(count, np.int64), count)


def total(metrics: Metrics, what: str) -> dict[str, float]:
    return {
        sample.labels["lang"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == what
    }


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 50))
def test_what_is_counted_is_what_came_but_for_the_last_stride(sizes, every):
    metrics, detector = Metrics(), Detector()
    meter = LanguageMeter(detector, metrics, every=every)
    largest = every
    for size in sizes:
        before = len(detector.seen)
        meter.observe(["fi"] * size, [tokens(3)] * size)
        assert len(detector.seen) - before <= MOST_PER_REQUEST
        largest = max(largest, -(-size // MOST_PER_REQUEST))
    counted = total(metrics, "mexma_language_items_total").get("fi", 0)
    assert sum(sizes) - largest < counted <= sum(sizes)


def test_a_language_has_its_share():
    metrics = Metrics()
    meter = LanguageMeter(Detector(), metrics, every=7)
    for _ in range(700):
        meter.observe(["fi a", "fi b", "ja c"], [tokens(4)] * 3)
    counted = total(metrics, "mexma_language_items_total")
    assert counted["fi"] / counted["ja"] == pytest.approx(2, rel=0.02)


def test_fertility_counts_what_was_cut_too():
    metrics = Metrics()
    meter = LanguageMeter(Detector(), metrics, every=1)
    meter.observe(["fi" * 50, "fi"], [Tokens(np.zeros(8, np.int64), 20), None])
    assert total(metrics, "mexma_language_sampled_tokens_total") == {"fi": 20}
    assert total(metrics, "mexma_language_sampled_characters_total") == {"fi": 100}


def test_it_can_be_turned_off():
    detector = Detector()
    LanguageMeter(detector, Metrics(), every=0).observe(["fi"] * 9, [tokens(1)] * 9)
    assert detector.seen == []


def test_texts_and_documents_and_queries_are_all_seen(make_client):
    client = make_client(language_sample_every=1)
    client.post("/v1/embeddings", json={"input": ["Missä kissa nukkuu tänään?"]})
    client.post("/embed", json={"inputs": "Der Hund schläft heute im Garten."})
    client.put("/v1/collections/c")
    documents = [{"id": "1", "text": "El gato duerme hoy en el sofá."}]
    client.post("/v1/collections/c/documents", json={"documents": documents})
    client.post("/v1/collections/c/search", json={"queries": ["猫はどこで眠っていますか"]})
    text = client.get("/metrics").text
    for lang in ("fi", "de", "es", "ja"):
        assert f'mexma_language_items_total{{lang="{lang}"}} 1.0' in text

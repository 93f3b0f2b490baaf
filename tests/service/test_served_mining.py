"""Mining with the default model over HTTP: real sentences, shuffled, some without a translation."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from mexma.sample import parallel_pairs, tatoeba_sample
from tests.conftest import ROOT, Server

Places = set[tuple[int, int]]
METHODS = ("intersection", "greedy", "union")


def mined(server: Server, source: list[str], target: list[str], **fields):
    body = {"source": source, "target": target, **fields}
    response = httpx.post(f"{server.url}/v1/mine", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def places(answer) -> Places:
    return {(p["source"], p["target"]) for p in answer["pairs"]}


def shuffled(lang: str, *, alone: float) -> tuple[list[str], list[str], Places]:
    """Sentences, English ones, and which translate each other; of either side the share `alone` does
    not."""
    rows = list(zip(*parallel_pairs(lang), strict=True))
    draw = random.Random(f"{lang}{alone}")
    draw.shuffle(rows)
    apart = round(alone * len(rows) / (1 + alone))
    source = [theirs for theirs, _ in rows[apart:]]
    target = [(english, i - apart) for i, (_, english) in enumerate(rows[: len(rows) - apart])]
    draw.shuffle(target)
    gold = {(i, j) for j, (_, i) in enumerate(target) if i >= 0}
    return source, [english for english, _ in target], gold


def precision_and_recall(found: Places, gold: Places) -> tuple[float, float]:
    right = len(found & gold)
    return right / len(found), right / len(gold)


@pytest.mark.parametrize(("lang", "least"), [("de", 0.97), ("ja", 0.88)])
def test_a_shuffled_list_finds_its_translations(server, lang, least):
    source, target, gold = shuffled(lang, alone=0)
    assert len(gold) == len(source) == 70
    for score in ("margin", "cosine"):
        for method in ("intersection", "greedy"):
            found = places(mined(server, source, target, score=score, method=method))
            precision, recall = precision_and_recall(found, gold)
            assert precision >= 0.95 and recall >= (least if method == "greedy" else least - 0.05)


@pytest.mark.parametrize("lang", ["de", "ja"])
def test_a_threshold_keeps_out_what_has_no_translation(server, lang):
    source, target, gold = shuffled(lang, alone=0.5)
    assert len(gold) < 0.6 * len(source)
    outcomes = {}
    for score, threshold in (("margin", 1.15), ("cosine", 0.55)):
        for chosen in (None, threshold):
            answer = mined(server, source, target, score=score, score_threshold=chosen)
            outcomes[score, chosen] = precision_and_recall(places(answer), gold)
        assert min(outcomes[score, threshold]) >= 0.7, outcomes
    assert outcomes["margin", 1.15][0] > outcomes["margin", None][0] + 0.1


@pytest.fixture(scope="module")
def mixed() -> tuple[list[str], list[str], Places]:
    """Of each group of the sample one sentence that is not English, and the English one; a third of the
    groups has lost the one and a third the other."""
    groups: dict[int, list[str]] = {}
    for sentence in tatoeba_sample():
        groups.setdefault(sentence.group, []).append(sentence.text)
    draw = random.Random(0)
    chosen = [g for g in groups.values() if len(g) > 1]
    draw.shuffle(chosen)
    third = len(chosen) // 3
    source = [draw.choice(group[1:]) for group in chosen[third:]]
    order = draw.sample(range(len(chosen) - third), len(chosen) - third)
    target = [chosen[i][0] for i in order]
    return source, target, {(i - third, j) for j, i in enumerate(order) if i >= third}


def test_what_the_readme_says_of_thresholds_is_so(server, mixed):
    source, target, gold = mixed
    assert len(source) == len(target) == 928 and len(gold) == 464
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(
        r"Of (\d+) in many languages and \1 English ones.*?margins from ([\d.]+) find (\d+) % of the "
        r"pairs, and (\d+) % of what they find is right; from ([\d.]+) it is (\d+) and (\d+) %. "
        r"Cosines from ([\d.]+) come to (\d+) and (\d+) %",
        readme,
        re.DOTALL,
    )
    assert said is not None
    count, *numbers = map(float, said.groups())
    assert count == len(source)
    for score, (threshold, recall, precision) in zip(
        ("margin", "margin", "cosine"), zip(*[iter(numbers)] * 3, strict=True), strict=True
    ):
        answer = mined(server, source, target, score=score, score_threshold=threshold)
        measured = [100 * share for share in precision_and_recall(places(answer), gold)]
        assert measured == pytest.approx([precision, recall], abs=1), (score, threshold)


def test_methods_are_within_one_another_and_sides_may_be_swapped(server, mixed):
    source, target, _ = mixed
    answers = {m: mined(server, source, target, method=m) for m in METHODS}
    by_all = [places(answers[m]) for m in METHODS]
    assert by_all[0] < by_all[1] < by_all[2]
    for answer in (answers["intersection"], answers["greedy"]):
        for side in ("source", "target"):
            assert len({p[side] for p in answer["pairs"]}) == len(answer["pairs"])
    back = mined(server, target, source)
    # A match whose rival scores the same but for rounding may change.
    assert len({(i, j) for j, i in places(back)} ^ by_all[0]) <= 2
    ranked = [answers["intersection"]["pairs"], back["pairs"]]
    scores = [np.array([p["score"] for p in pairs[:500]]) for pairs in ranked]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3)


def test_many_at_once_get_what_one_gets(server):
    source, target, _ = shuffled("ja", alone=0)
    alone = mined(server, source, target)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: mined(server, source, target), range(16)))
    for answer in together:
        assert places(answer) == places(alone)
        assert answer["usage"] == alone["usage"]

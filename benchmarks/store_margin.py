"""Margin against cosine in search between languages: wrong first hits, and hubs.

    python -m benchmarks.store_margin PAIRS... [--model models/default]

PAIRS are Parquet files with columns lang, src, trg (English). All their English sentences are one
collection. Of each language up to 200 sentences are searched for in it, through the store, every
document compared; a first hit that is not the sentence's own translation is wrong. The texts should be
ones that the model was not trained on.

"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.circumstances import circumstances, result_file
from evaluation.geometry import hubness_of
from evaluation.subject import ArtifactSubject
from service.store.local import LocalStore
from service.store.protocol import Document, Query, Score

PER_LANGUAGE, LANGUAGES, SHORTEST, LONGEST = 200, 30, 20, 120
SCORES: tuple[Score, Score] = ("cosine", "margin")


def read(files: list[Path]) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """The English sentences, and (sentence, its English) of each language with enough of them."""
    english: dict[str, None] = {}
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        rows = pq.read_table(file, columns=["lang", "src", "trg"]).to_pydict()
        for lang, source, target in zip(rows["lang"], rows["src"], rows["trg"], strict=True):
            if SHORTEST <= len(target) <= LONGEST:
                english[target] = None
                # A sentence that stayed as it is would be found by its letters.
                if source != target and SHORTEST // 2 <= len(source) <= LONGEST:
                    pairs[lang].setdefault(source, target)
    draw = np.random.default_rng(0)
    chosen = {}
    for lang in sorted(pairs, key=lambda lang: (-len(pairs[lang]), lang))[:LANGUAGES]:
        rows_of = [*pairs[lang].items()]
        places = draw.permutation(len(rows_of))[:PER_LANGUAGE]
        chosen[lang] = [rows_of[n] for n in places]
    return [*english], dict(sorted(chosen.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, default=Path("models/default"))
    arguments = parser.parse_args()
    english, pairs = read(arguments.pairs)
    subject = ArtifactSubject(arguments.model)
    wrong: dict[Score, dict[str, int]] = {score: {} for score in SCORES}
    near: dict[Score, Counter[str]] = {score: Counter() for score in SCORES}
    first: dict[Score, Counter[str]] = {score: Counter() for score in SCORES}
    with tempfile.TemporaryDirectory() as root:
        store = LocalStore(Path(root))
        vectors = subject.vectors(english)
        store.create("english", vectors.shape[1], "encoder")
        documents = [Document(str(n), text, "en") for n, text in enumerate(english)]
        for start in range(0, len(documents), 1_000):
            part = slice(start, start + 1_000)
            store.upsert("english", documents[part], vectors[part], "encoder")
        for lang, rows in pairs.items():
            asked = subject.vectors([source for source, _ in rows])
            for score in SCORES:
                found = store.search("english", asked, Query(k=10, score=score), "encoder")
                right = [target for _, target in rows]
                wrong[score][lang] = sum(
                    hits[0].text != target for hits, target in zip(found, right, strict=True)
                )
                near[score].update(hit.text for hits in found for hit in hits)
                first[score].update(
                    hits[0].text
                    for hits, target in zip(found, right, strict=True)
                    if hits[0].text != target
                )
        store.close()
    report = _report(english, pairs, wrong, near, first)
    sources = ", ".join(file.stem for file in arguments.pairs)
    text = (
        f"# Margin and cosine in search between languages\n\n"
        f"{circumstances('numpy', 'faiss-cpu', 'onnxruntime')}\n\n"
        f"`python -m benchmarks.store_margin` on {sources}; model {subject.about['name']} "
        f"({subject.about['fingerprint']}). {len(english)} English sentences in one collection, "
        f"{sum(map(len, pairs.values()))} sentences of {len(pairs)} languages searched for.\n\n{report}"
    )
    result_file("store_margin").write_text(text)
    print(text)


def _report(
    english: list[str],
    pairs: dict[str, list[tuple[str, str]]],
    wrong: dict[Score, dict[str, int]],
    near: dict[Score, Counter[str]],
    first: dict[Score, Counter[str]],
) -> str:
    total = sum(map(len, pairs.values()))
    lines = ["| | cosine | margin |", "|---|---:|---:|"]

    def row(name: str, *values: str) -> None:
        lines.append(f"| {name} | {values[0]} | {values[1]} |")

    row("wrong first hits", *(f"{100 * sum(wrong[s].values()) / total:.2f} %" for s in SCORES))
    better = sum(wrong["margin"][lang] < wrong["cosine"][lang] for lang in pairs)
    worse = sum(wrong["margin"][lang] > wrong["cosine"][lang] for lang in pairs)
    hubs = {s: hubness_of(np.array([near[s][text] for text in english])) for s in SCORES}
    row("hubness: skewness of 10-occurrence", *(f"{hubs[s].skewness:.2f}" for s in SCORES))
    row("most queries with one document among their 10", *(str(hubs[s].largest) for s in SCORES))
    row(
        "documents wrongly first for 5 queries or more",
        *(str(sum(n >= 5 for n in first[s].values())) for s in SCORES),
    )
    lines.append(f"\nLanguages with fewer wrong by margin: {better}; with more: {worse}.\n")
    lines += ["| language | searched | wrong, cosine % | wrong, margin % |", "|---|---:|---:|---:|"]
    for lang, rows in pairs.items():
        shares = [100 * wrong[score][lang] / len(rows) for score in SCORES]
        lines.append(f"| {lang} | {len(rows)} | {shares[0]:.1f} | {shares[1]:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

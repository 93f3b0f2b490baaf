"""A few phrases in 41 languages with their English: what `tiny_cpu` runs on; too few to learn from.

Names of symbols from Unicode CLDR's annotations, under the Unicode License V3 (see NOTICE). The
sentences of `mexma.sample` are a test set's and are never trained on.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

IN_A_ROW = (1, 3, 1, 5, 2, 1, 7, 4)


class Phrase(NamedTuple):
    """text: in the language `lang` (BCP 47). english: its translation."""

    text: str
    english: str
    lang: str


def cldr_phrases() -> list[Phrase]:
    """All phrases by language; of every eight three alone, the others up to seven in a row, so
    that lengths differ as sentences' do."""
    content = files("training").joinpath("phrases.tsv").read_text(encoding="utf-8")
    by_language: dict[str, list[tuple[str, str]]] = {}
    for line in content.splitlines()[1:]:
        lang, text, english = line.split("\t")
        by_language.setdefault(lang, []).append((text, english))
    return [
        Phrase(", ".join(t for t, _ in run), ", ".join(e for _, e in run), lang)
        for lang, phrases in by_language.items()
        for start in range(len(phrases))
        if (run := phrases[start : start + IN_A_ROW[start % len(IN_A_ROW)]])
    ]

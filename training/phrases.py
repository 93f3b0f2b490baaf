"""A few phrases in 41 languages with their English: what `tiny_cpu` runs on, not enough to learn from.

Names of symbols from Unicode CLDR's annotations, under the Unicode License V3 (see NOTICE). The
sentences of `mexma.sample` are a test set's and are never trained on.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple


class Phrase(NamedTuple):
    """text: in the language `lang` (BCP 47). english: its translation."""

    text: str
    english: str
    lang: str


def cldr_phrases() -> list[Phrase]:
    """All phrases, those of one English phrase together."""
    content = files("training").joinpath("phrases.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in content.splitlines()[1:])
    return [Phrase(text, english, lang) for lang, text, english in rows]

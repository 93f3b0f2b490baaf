"""A few thousand real sentences in 42 languages, for the demo and for proofs.

See `data/ATTRIBUTION.md` for where they come from and what they may be used for.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple


class Sentence(NamedTuple):
    """group: sentences with the same number translate each other. lang: BCP 47."""

    group: int
    lang: str
    text: str


def tatoeba_sample() -> list[Sentence]:
    """All sentences of the sample, each group beginning with its English one."""
    text = files("mexma").joinpath("data/tatoeba_sample.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return [Sentence(int(group), lang, sentence) for group, lang, sentence in rows]


def parallel_pairs(lang: str) -> tuple[list[str], list[str]]:
    """The sample's sentences in `lang` and, in the same order, their English translations."""
    english = {s.group: s.text for s in tatoeba_sample() if s.lang == "en"}
    rows = [s for s in tatoeba_sample() if s.lang == lang]
    return [s.text for s in rows], [english[s.group] for s in rows]

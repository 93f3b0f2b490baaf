"""Word alignment from token states, and its error rate against gold links.

Pieces are linked by the methods of `mexma.alignment`, and two words are linked when any of their
pieces are.

Gold comes in Pharaoh format, one string per sentence pair: "0-0 1-2 3p4" links source word 0 to
target word 0 surely and source word 3 to target word 4 possibly. Words are what white space
divides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from evaluation.retrieval import Bool, Index
from mexma.errors import InputError

Link = tuple[int, int]


@dataclass(frozen=True)
class Gold:
    """Links of one sentence pair, (source word, target word) from 0. Sure ones are possible."""

    sure: frozenset[Link]
    possible: frozenset[Link]


@dataclass
class AlignmentErrors:
    """Counts over a corpus; AER, precision and recall by Och and Ney (2003).

    AER = 1 - (|A and S| + |A and P|) / (|A| + |S|), with A the links found, S the sure and P
    the possible ones; sums over all sentences.
    """

    found: int = 0
    sure: int = 0
    found_sure: int = 0
    found_possible: int = 0
    sentences: int = 0

    def add(self, found: set[Link], gold: Gold) -> None:
        """Count one sentence pair."""
        self.found += len(found)
        self.sure += len(gold.sure)
        self.found_sure += len(found & gold.sure)
        self.found_possible += len(found & gold.possible)
        self.sentences += 1

    @property
    def aer(self) -> float:
        """0 to 1. Raises InputError when nothing was found and nothing is sure."""
        if self.found + self.sure == 0:
            raise InputError(
                f"alignment: expected links, but {self.sentences} sentences have no sure gold "
                "link and none was found"
            )
        return 1 - (self.found_sure + self.found_possible) / (self.found + self.sure)

    @property
    def precision(self) -> float:
        """Share of the links found that are possible; 1 when none was found."""
        return self.found_possible / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Share of the sure links that were found; 1 when none is sure."""
        return self.found_sure / self.sure if self.sure else 1.0


def parse_links(
    text: str, source_words: int, target_words: int, *, first: int = 0, where: str = "alignment"
) -> Gold:
    """Gold links from Pharaoh format.

    first: the number of the first word, 0 or 1. where: named in errors. Raises InputError for
    anything that is no link and for a link to a word that the sentence does not have.
    """
    sure, possible = set(), set()
    for item in text.split():
        match = re.fullmatch(r"(\d+)([-p])(\d+)", item)
        if match is None:
            raise InputError(f"{where}: expected links like 0-0 or 0p0, got {item!r} in {text!r}")
        link = (int(match[1]) - first, int(match[3]) - first)
        if not (0 <= link[0] < source_words and 0 <= link[1] < target_words):
            raise InputError(
                f"{where}: link {item} leaves the sentences, which have {source_words} and "
                f"{target_words} words counted from {first}"
            )
        possible.add(link)
        if match[2] == "-":
            sure.add(link)
    return Gold(frozenset(sure), frozenset(possible))


def diagonal_links(source_words: int, target_words: int) -> set[Link]:
    """The plain alternative, which looks at no word: positions in proportion."""
    if not target_words:
        return set()
    return {(i, (2 * i + 1) * target_words // (2 * source_words)) for i in range(source_words)}


def word_links(pieces: Bool, source_words: Index, target_words: Index) -> set[Link]:
    """Links of words from links of pieces, bool `[n, m]`.

    source_words int64 `[n]` and target_words int64 `[m]`: the word each piece belongs to.
    """
    return {
        (int(source_words[i]), int(target_words[j]))
        for i, j in zip(*np.nonzero(pieces), strict=True)
    }

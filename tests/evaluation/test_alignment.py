"""Word alignment: gold links, the error rate by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.alignment import (
    AlignmentErrors,
    Gold,
    diagonal_links,
    parse_links,
    word_links,
)
from mexma.alignment import argmax_links, similarities
from mexma.errors import InputError


def as_set(links):
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(links), strict=True)}


def test_words_are_linked_when_any_of_their_pieces_are():
    pieces = np.zeros((4, 3), bool)
    pieces[1, 0] = pieces[2, 0] = pieces[3, 2] = True
    links = word_links(pieces, np.array([0, 0, 1, 2]), np.array([0, 1, 1]))
    assert links == {(0, 0), (1, 0), (2, 1)}


def test_gold_links():
    gold = parse_links("0-0 1p1 2-1", 3, 2)
    assert gold == Gold(frozenset({(0, 0), (2, 1)}), frozenset({(0, 0), (1, 1), (2, 1)}))
    assert parse_links("1-1 3p2", 3, 2, first=1).possible == {(0, 0), (2, 1)}
    assert parse_links("", 3, 2) == Gold(frozenset(), frozenset())
    for text, message in (
        ("0-0 1:1", "expected links like 0-0 or 0p0, got '1:1'"),
        ("3-0", "link 3-0 leaves the sentences, which have 3 and 2 words counted from 0"),
        ("0-2", "leaves the sentences"),
        ("-1-0", "expected links"),
    ):
        with pytest.raises(InputError, match=message):
            parse_links(text, 3, 2)
    with pytest.raises(InputError, match=r"^de: link 0-1 leaves .* counted from 1"):
        parse_links("0-1", 3, 2, first=1, where="de")


def test_the_error_rate_by_hand():
    """|A| 3, |S| 2, |A and S| 1, |A and P| 2: AER 1 - 3/5, precision 2/3, recall 1/2."""
    errors = AlignmentErrors()
    errors.add({(0, 0), (1, 1), (2, 2)}, parse_links("0-0 1p1 3-3", 4, 4))
    assert errors.aer == pytest.approx(0.4)
    assert errors.precision == pytest.approx(2 / 3)
    assert errors.recall == pytest.approx(1 / 2)


def test_the_error_rate_sums_over_sentences_and_is_no_mean_of_rates():
    errors = AlignmentErrors()
    errors.add({(0, 0)}, parse_links("0-0", 1, 1))
    errors.add({(0, 0), (1, 1)}, parse_links("0-1 1-0", 2, 2))
    assert errors.aer == pytest.approx(1 - (1 + 1) / (3 + 3))
    assert errors.sentences == 2


def test_perfect_wrong_and_empty_alignments():
    gold = parse_links("0-0 1-1 0p1", 2, 2)
    perfect, with_possible, wrong, none = (AlignmentErrors() for _ in range(4))
    perfect.add({(0, 0), (1, 1)}, gold)
    with_possible.add({(0, 0), (1, 1), (0, 1)}, gold)
    wrong.add({(1, 0)}, gold)
    none.add(set(), gold)
    assert perfect.aer == with_possible.aer == 0  # possible links cost nothing
    assert wrong.aer == none.aer == 1
    assert (none.precision, none.recall) == (1, 0)
    with pytest.raises(InputError, match="no sure gold link and none was found"):
        AlignmentErrors().aer  # noqa: B018


def test_shuffled_states_align_worse():
    rng = np.random.default_rng(0)
    right, shuffled = AlignmentErrors(), AlignmentErrors()
    for _ in range(20):
        source = rng.standard_normal((8, 16)).astype(np.float32)
        order = rng.permutation(8)
        target = source[order] + 0.1 * rng.standard_normal((8, 16)).astype(np.float32)
        gold = Gold(*[frozenset((int(o), j) for j, o in enumerate(order))] * 2)
        right.add(as_set(argmax_links(similarities(source, target))), gold)
        shuffled.add(as_set(argmax_links(similarities(source, rng.permutation(target)))), gold)
    assert right.aer < 0.02 < 0.7 < shuffled.aer


def test_the_diagonal():
    assert diagonal_links(3, 3) == {(0, 0), (1, 1), (2, 2)}
    assert diagonal_links(2, 4) == {(0, 1), (1, 3)}
    assert diagonal_links(4, 2) == {(0, 0), (1, 0), (2, 1), (3, 1)}
    assert diagonal_links(0, 2) == diagonal_links(2, 0) == set()

"""Tokenising: limits, receipts, refusals."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma.errors import EmptyText, EngineError, TextTooLong, TokenOutOfRange, UnencodableText
from mexma.text import TextTokenizer, TokenBatch, _groups
from tests.conftest import ROOT
from tests.fakes import byte_tokenizer_json, text_of

TOKENIZER = TextTokenizer(byte_tokenizer_json(), max_tokens=10)


@cache
def default_tokenizer(max_tokens: int) -> TextTokenizer:
    return TextTokenizer(
        (ROOT / "models/default/tokenizer.json").read_bytes(), max_tokens=max_tokens
    )


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_right_truncation_keeps_the_beginning_and_says_where_it_cut(text):
    (tokens,) = TOKENIZER.encode([text])
    assert tokens.seen == len(text) + 2
    assert len(tokens) == min(tokens.seen, 10)
    assert (tokens.ids[0], tokens.ids[-1]) == (0, 2)
    if tokens.cut_at is None:
        assert tokens.seen <= 10
    else:
        assert text_of(tokens.ids) == text[: tokens.cut_at]


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=9))
def test_left_truncation_keeps_the_end(text):
    (tokens,) = TOKENIZER.encode([text], side="left")
    assert text_of(tokens.ids) == text[tokens.cut_at :]


@pytest.mark.parametrize(
    "text",
    ["안녕하세요 세계", "Tiếng Việt rất đẹp", "நீங்கள் எங்கே போகிறீர்கள்?", "ṩ", "क़लम", "שָׁלוֹם", "café"],
)
def test_a_text_is_the_same_however_its_letters_are_composed(text):
    tokenizer = default_tokenizer(512)
    composed, apart = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
    one, other = tokenizer.encode([composed, apart])
    assert one.ids.tolist() == other.ids.tolist()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_is_counted_in_the_characters_that_were_sent(side):
    tokenizer = default_tokenizer(10)
    composed = "안녕하세요 세계 " * 10
    apart = unicodedata.normalize("NFD", composed)
    one, other = tokenizer.encode([composed, apart], side=side)
    assert one.ids.tolist() == other.ids.tolist()
    assert unicodedata.normalize("NFC", apart[: other.cut_at]) == composed[: one.cut_at]
    assert one.cut_at < other.cut_at


def test_a_prefix_counts_as_tokens_but_not_as_characters():
    tokenizer = TextTokenizer(byte_tokenizer_json(), max_tokens=10, prefix="q: ")
    (short,) = tokenizer.encode(["ab"])
    assert short.seen == 2 + 3 + 2
    assert text_of(short.ids) == "q: ab"
    (long,) = tokenizer.encode(["abcdefghij"])
    assert (long.seen, len(long), long.cut_at) == (15, 10, 5)


@pytest.mark.parametrize(
    ("texts", "error", "item"),
    [
        (["a", ""], EmptyText, 1),
        (["a", "b\ud800"], UnencodableText, 1),
    ],
)
def test_what_cannot_be_embedded_is_named(texts, error, item):
    with pytest.raises(error, match=f"item {item}") as caught:
        TOKENIZER.encode(texts)
    assert caught.value.item == item


def test_refusing_truncation_names_item_and_limit():
    with pytest.raises(TextTooLong, match="item 1 has 14 tokens; the limit is 10") as caught:
        TOKENIZER.encode(["ok", "x" * 12], truncate=False)
    assert (caught.value.item, caught.value.limit) == (1, 10)


def test_ids_are_taken_with_or_without_their_special_tokens():
    (expected,) = TOKENIZER.encode(["abc"])
    for given_ids in (expected.ids.tolist(), expected.ids[1:-1].tolist()):
        (tokens,) = TOKENIZER.from_ids([given_ids])
        np.testing.assert_array_equal(tokens.ids, expected.ids)
    (cut,) = TOKENIZER.from_ids([list(range(3, 33))])
    assert (cut.seen, len(cut), cut.cut_at) == (32, 10, None)
    assert (cut.ids[0], cut.ids[-1]) == (0, 2)


def test_bad_ids_are_named():
    with pytest.raises(TokenOutOfRange, match="item 1 holds token id 259 at position 0"):
        TOKENIZER.from_ids([[5], [259]])
    with pytest.raises(EmptyText):
        TOKENIZER.from_ids([[0, 2]])
    with pytest.raises(TextTooLong):
        TOKENIZER.from_ids([[5] * 20], truncate=False)


def test_a_limit_without_room_for_a_token_is_refused():
    with pytest.raises(ValueError, match="must exceed the 2 special tokens"):
        TextTokenizer(byte_tokenizer_json(), max_tokens=2)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        TextTokenizer(b"{}", max_tokens=10)


@given(st.lists(st.lists(st.integers(3, 200), min_size=1, max_size=9), min_size=1, max_size=9))
def test_padding_loses_nothing(sequences):
    batch = TokenBatch.pad([np.array(s, np.int64) for s in sequences], pad_id=1)
    assert batch.ids.shape == batch.mask.shape == (len(sequences), max(map(len, sequences)))
    for row, mask, sequence in zip(batch.ids, batch.mask, sequences, strict=True):
        assert row[mask.astype(bool)].tolist() == sequence
        assert (row[~mask.astype(bool)] == 1).all()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)


@given(st.lists(st.lists(st.integers(3, 200), min_size=1, max_size=9), min_size=1, max_size=9))
def test_tokens_end_to_end_are_those_of_the_rectangle(sequences):
    batch = TokenBatch.pad([np.array(s, np.int64) for s in sequences], pad_id=1)
    assert [batch.tokens[a:b].tolist() for a, b in pairwise(batch.bounds)] == sequences
    assert (batch.ids[batch.rows, batch.places] == batch.tokens).all()
    count = len(batch.tokens)
    assert (batch.ids.ravel()[batch.cells.ravel()[:count]] == batch.tokens).all()
    assert sorted(batch.cells.ravel()) == list(range(batch.ids.size)), "each cell once"
    kinds = {n: getattr(batch, n).dtype for n in ("tokens", "rows", "places", "cells", "bounds")}
    assert kinds == {
        "tokens": np.int64, "rows": np.int64, "places": np.int64,
        "cells": np.int32, "bounds": np.int32,
    }  # fmt: skip


class PanicException(BaseException):
    """pyo3's cannot be imported; it is told by its name."""


def test_a_tokenizer_that_panics_is_an_error_like_others():
    content = json.loads(byte_tokenizer_json())
    content["post_processor"]["special_tokens"] = {}  # its template names two
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        TextTokenizer(json.dumps(content).encode(), max_tokens=10)

    class Panics:
        def encode_batch_fast(self, *_, **__):
            raise PanicException("index out of bounds")

    tokenizer = TextTokenizer(byte_tokenizer_json(), max_tokens=10)
    tokenizer._tokenizer = Panics()
    with pytest.raises(EngineError, match="index out of bounds"):
        tokenizer.encode(["text"])


WORDS = st.lists(
    st.text(alphabet="abcxyzé猫", min_size=1, max_size=9).flatmap(
        lambda word: st.sampled_from([" ", "\n", "\u3000 "]).map(lambda space: word + space)
    ),
    max_size=30,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(WORDS, min_size=1, max_size=4), st.sampled_from(["right", "left"]), st.integers(3, 40)
)
def test_a_long_text_read_in_pieces_is_what_it_is_in_one(texts, side, piece):
    """With a real model's tokenizer, whose words are tokenised each by itself."""
    whole = default_tokenizer(12)
    texts = [f"a{text}" for text in texts]
    expected = whole.encode(texts, side=side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mexma.text.GROUP_CHARACTERS", max(piece, 20))
        found = whole.encode(texts, side=side)
    for text, one, other in zip(texts, expected, found, strict=True):
        assert one.ids.tolist() == other.ids.tolist(), text
        assert (one.seen, one.cut_at) == (other.seen, other.cut_at), text


def test_a_long_text_is_refused_in_the_words_of_a_short_one(monkeypatch):
    monkeypatch.setattr("mexma.text.GROUP_CHARACTERS", 8)
    with pytest.raises(TextTooLong, match="item 1 has 22 tokens; the limit is 10"):
        TOKENIZER.encode(["a", "x" * 20], truncate=False)


def test_many_texts_are_not_all_tokenised_at_once(monkeypatch):
    monkeypatch.setattr("mexma.text.GROUP_CHARACTERS", 8)
    texts = ["abc", "defg", "h" * 9, "i", "jklmnop", "q"]
    assert list(_groups(texts)) == [(0, 2), (2, 3), (3, 5), (5, 6)]
    assert [text_of(t.ids) for t in TOKENIZER.encode(texts)] == [*texts[:2], "h" * 8, *texts[3:]]

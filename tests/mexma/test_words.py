"""Words: what they are in each script, that each is a slice of the text, and which tokens are theirs."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mexma.errors import EmptyText, InputError
from mexma.sample import tatoeba_sample
from mexma.text import GROUP_CHARACTERS, TextTokenizer
from mexma.words import words_of
from tests.conftest import ROOT
from tests.fakes import byte_tokenizer_json

INVISIBLE = "\u200c\u200d\u200e\u200f\u2060"


@cache
def tokenizer(prefix: str = "", max_tokens: int = 512) -> TextTokenizer:
    return TextTokenizer(
        (ROOT / "models/default/tokenizer.json").read_bytes(), max_tokens=max_tokens, prefix=prefix
    )


def words(text: str, **how) -> list[str]:
    (tokens,) = tokenizer(**how).locate([text])
    return [text[w.start : w.end] for w in words_of(text, tokens.spans)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sleeps.", ["The", "cat", "sleeps", "."]),
        ("I don't pay 3.14 or 1,000!", ["I", "don't", "pay", "3.14", "or", "1,000", "!"]),
        ("l'école, aujourd’hui", ["l'école", ",", "aujourd’hui"]),
        ("well-known snake_case", ["well", "-", "known", "snake_case"]),
        ("Wait... what?!", ["Wait", "...", "what", "?", "!"]),
        ("¿Dónde está?", ["¿", "Dónde", "está", "?"]),
        ("Где мой кот?", ["Где", "мой", "кот", "?"]),
        ("나는 고양이가 있다.", ["나는", "고양이가", "있다", "."]),
        ("أين القطّة؟", ["أين", "القطّة", "؟"]),
        ("मैं हिंदी बोलता हूँ।", ["मैं", "हिंदी", "बोलता", "हूँ", "।"]),
        ("リヨン行きの電車", ["リヨン", "行き", "の", "電車"]),
        ("ฉันมีแมวสองตัว", ["ฉัน", "มี", "แมว", "สอง", "ตัว"]),
        ("最近的医院在哪里？", ["最近", "的", "医院", "在哪里", "？"]),
        ("👨‍👩‍👧 👍🏽 🇫🇮🇸🇪 1️⃣", ["👨‍👩‍👧", "👍🏽", "🇫🇮", "🇸🇪", "1️⃣"]),
        ("Vie\u0323\u0302t Nam", ["Vie\u0323\u0302t", "Nam"]),
        ("co\u00adoperate", ["co\u00adoperate"]),
        ("\u200bមាន\u200bឆ្មា", ["មាន", "ឆ្មា"]),
        (" \n\t ", []),
    ],
)
def test_what_a_word_is(text, expected):
    assert words(text) == expected


def test_real_sentences_in_spaced_scripts_are_divided_as_white_space_and_signs_do():
    for sentence in tatoeba_sample():
        found = words(sentence.text)
        visible = sentence.text.replace("\u200b", " ")
        assert "".join(found) == "".join(visible.split()), sentence.text
        if sentence.lang in ("en", "fi", "ru", "ar", "hi", "ko", "el", "he"):
            bare = ["".join(c for c in part if c.isalnum()) for part in sentence.text.split()]
            assert [p for p in bare if p] == [
                part
                for chunk in _chunks(sentence.text, found)
                if (part := "".join(c for c in chunk if c.isalnum()))
            ]


def _chunks(text: str, found: list[str]) -> list[str]:
    """Words joined again where no white space is between them."""
    chunks, at = [""], 0
    for word in found:
        start = text.index(word, at)
        if text[at:start].strip() == "" and start > at:
            chunks.append("")
        chunks[-1] += word
        at = start + len(word)
    return chunks


@settings(deadline=None, max_examples=150)
@given(
    st.text(
        st.one_of(
            st.characters(codec="utf-8"),
            st.sampled_from("ab 1.,'ーア็ัก猫の🇫🇮👍🏽\u200d\u0301\ufe0f\u200b\u00ad\u0915\u094d"),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["", "query: "]),
)
@example("\u0301a", "")
@example("\u200d\u200d", "")
@example("㍿…ﷺ", "query: ")
def test_words_are_slices_in_order_none_ends_before_a_mark_and_each_has_its_tokens(text, prefix):
    try:
        (tokens,) = tokenizer(prefix).locate([text])
    except EmptyText:
        return
    found = words_of(text, tokens.spans)
    assert [(w.start, w.end) for w in found] == sorted((w.start, w.end) for w in found)
    for a, b in pairwise(found):
        assert a.end <= b.start
    for word in found:
        assert 0 <= word.start < word.end <= len(text)
        slice_ = text[word.start : word.end]
        assert not any(c.isspace() for c in slice_)
        if word.end < len(text):
            assert unicodedata.category(text[word.end]) not in ("Mn", "Me")
        first, last = word.tokens
        assert 0 <= first < last <= len(tokens)
        overlaps = [
            i
            for i, (start, end) in enumerate(tokens.spans)
            if start < word.end and end > word.start
        ]
        assert (first, last) == (overlaps[0], overlaps[-1] + 1)
    for place, (start, end) in enumerate(tokens.spans):
        if text[start:end].strip() and any(c.isalnum() for c in text[start:end]):
            assert any(w.tokens[0] <= place < w.tokens[1] for w in found), "no letter is lost"


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([s.text for s in tatoeba_sample()]), st.sampled_from(["right", "left"]))
def test_a_text_that_is_cut_has_the_words_that_are_left(text, side):
    small = tokenizer("", 8)
    (tokens,) = small.locate([text], side=side)
    (same,) = small.encode([text], side=side)
    np.testing.assert_array_equal(tokens.ids, same.ids)
    assert (tokens.seen, tokens.cut_at) == (same.seen, same.cut_at)
    assert len(tokens.spans) == len(tokens)
    found = words_of(text, tokens.spans)
    if tokens.cut_at is not None and found:
        if side == "right":
            beyond = text[tokens.cut_at : found[-1].end]
            assert all(unicodedata.category(c)[0] == "M" or c in INVISIBLE for c in beyond)
        else:
            assert found[0].start >= tokens.cut_at


def test_a_prefix_has_no_words_and_moves_no_offset():
    text = "naïve cats 🐈"
    with_prefix = tokenizer("query: ").locate([text])[0]
    np.testing.assert_array_equal(with_prefix.ids, tokenizer("query: ").encode([text])[0].ids)
    found = words_of(text, with_prefix.spans)
    assert [text[w.start : w.end] for w in found] == ["naïve", "cats", "🐈"]
    assert found[0].tokens[0] > 1, "the prefix has tokens before"


def test_tokens_smaller_than_a_character_are_all_of_its_word():
    bytewise = TextTokenizer(byte_tokenizer_json(), max_tokens=64)
    text = "é 猫🐈"
    (tokens,) = bytewise.locate([text])
    found = words_of(text, tokens.spans)
    assert [text[w.start : w.end] for w in found] == ["é", "猫", "🐈"]
    assert [w.tokens[1] - w.tokens[0] for w in found] == [2, 3, 4]


def test_what_is_too_long_to_locate_is_refused():
    with pytest.raises(
        InputError, match=rf"at most {GROUP_CHARACTERS} characters in all"
    ) as refused:
        tokenizer().locate(["fine", "x" * (GROUP_CHARACTERS - 3)])
    assert refused.value.limit == GROUP_CHARACTERS
    assert len(tokenizer().locate(["fine", "x" * (GROUP_CHARACTERS - 4)])) == 2

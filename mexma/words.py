"""The words of a text, as far as an encoder has seen them: where each lies, and which tokens it is.

Where a script puts spaces between words they are letters, digits and marks that stand together, with
apostrophes and points inside ("aujourd'hui", "3.14"); each other sign is one by itself, and a run of the
same sign ("..."). That is about what Unicode's annex 29 says, and of Katakana, too: a run of it is a
word. Chinese, the rest of Japanese, Thai, Lao, Khmer and Burmese put none: there a piece of the tokenizer
is a word, which is often one and never ends between a letter and its marks.

Refuses to know: models, states, languages.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Span = tuple[int, int]
Kind = Literal["space", "spaced", "unspaced", "katakana", "sign"]

JOINER = "\u200d"
VIRAMA = 9  # the combining class of marks that stack letters, as in Khmer and Burmese
# Which Khmer and Thai put between words where they want a break.
ZERO_WIDTH_SPACE = "\u200b"
# Between two letters, and between two digits, they end no word.
INSIDE_LETTERS = frozenset("'’·‧.")
INSIDE_DIGITS = frozenset("'’.,٫٬")
# Scripts whose words no space divides, by blocks: first and last character.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),  # iteration mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Burmese
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)
_FIRST = [first for first, _ in UNSPACED]
KATAKANA = ((0x30A1, 0x30FA), (0x31F0, 0x31FF), (0xFF66, 0xFF9D))
# It lengthens the sound before; a mark to us.
LONG_SOUND = "ーｰ"


class Word(NamedTuple):
    """start, end: in characters of the text, whose slice it is. tokens: its first token, and the one after
    its last; a token that lies across two words is of both."""

    start: int
    end: int
    tokens: Span


class _Letter(NamedTuple):
    """A character with the marks behind it. start, end: of both in the text. joins: with whatever follows.
    stacks: a letter that follows is written below it."""

    character: str
    kind: Kind
    start: int
    end: int
    joins: bool
    stacks: bool


def words_of(text: str, tokens: Sequence[Span]) -> list[Word]:
    """The words of `text` that have a token, in order.

    tokens: where each token lies in the text, from the first to the last, (start, end) in characters; equal
    where it stands for nothing there (special tokens, an encoder's prefix).
    """
    there = [(start, end) for start, end in tokens if end > start]
    if not there:
        return []
    begun = {_after_spaces(text, start, end) for start, end in there}
    # Outside there is nothing but what was cut off.
    letters = [*_letters(text, there[0][0], _end_of_marks(text, there[-1][1]))]
    return [*_with_tokens(_spans(letters, begun), tokens)]


def _letters(text: str, at: int, end: int) -> Iterator[_Letter]:
    """What lies between two places of it."""
    while at < end:
        start, at = at, min(end, _end_of_marks(text, at + 1))
        last = text[at - 1]
        stacks = unicodedata.combining(last) == VIRAMA
        yield _Letter(text[start], _kind(text[start]), start, at, last == JOINER, stacks)


def _spans(letters: Sequence[_Letter], begun: set[int]) -> Iterator[Span]:
    """Words by what the text says. begun: where tokens begin."""
    word: list[_Letter] = []
    for place, letter in enumerate(letters):
        after = letters[place + 1] if place + 1 < len(letters) else None
        if word and not _goes_on(word, letter, after, begun):
            yield word[0].start, word[-1].end
            word = []
        if word or letter.kind != "space":
            word.append(letter)
    if word:
        yield word[0].start, word[-1].end


def _goes_on(word: list[_Letter], letter: _Letter, after: _Letter | None, begun: set[int]) -> bool:
    """Whether `letter` is of the word that has begun."""
    first, last = word[0], word[-1]
    if last.joins:
        return letter.kind != "space"
    if first.kind == "spaced":
        return letter.kind == "spaced" or (after is not None and _is_inside(last, letter, after))
    if first.kind == "sign":
        if _is_region(first.character):
            return _is_region(letter.character) and len(word) == 1
        return letter.character == first.character
    whole = first.kind == "katakana" or last.stacks
    return letter.kind == first.kind and (whole or letter.start not in begun)


def _is_inside(before: _Letter, sign: _Letter, after: _Letter) -> bool:
    """Whether a sign between two letters, or two digits, divides no word."""
    digits = before.character.isdecimal(), after.character.isdecimal()
    if all(digits):
        return sign.character in INSIDE_DIGITS
    return not any(digits) and sign.character in INSIDE_LETTERS and after.kind == "spaced"


def _kind(character: str) -> Kind:
    code, category = ord(character), unicodedata.category(character)
    if character.isspace() or character == ZERO_WIDTH_SPACE or category == "Cc":
        return "space"
    if any(first <= code <= last for first, last in KATAKANA):
        return "katakana"
    if character.isalnum() or category[0] == "M":
        place = bisect_right(_FIRST, code) - 1
        is_unspaced = place >= 0 and code <= UNSPACED[place][1] and not character.isdecimal()
        return "unspaced" if is_unspaced else "spaced"
    return "spaced" if character == "_" else "sign"


def _is_region(character: str) -> bool:
    """Whether it is half a flag."""
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def _end_of_marks(text: str, at: int) -> int:
    """Behind the marks at `at`, which belong to the character before: accents, vowel signs, what joins or
    varies an emoji or gives it a colour, what lengthens a Kana, and invisible characters."""
    while (
        at < len(text)
        and text[at] != ZERO_WIDTH_SPACE
        and (
            unicodedata.category(text[at]) in ("Mn", "Mc", "Me", "Cf")
            or 0x1F3FB <= ord(text[at]) <= 0x1F3FF
            or text[at] in LONG_SOUND
        )
    ):
        at += 1
    return at


def _after_spaces(text: str, start: int, end: int) -> int:
    """Where a token's own characters begin: those of SentencePiece begin with the space before."""
    while start < end and text[start].isspace():
        start += 1
    return start


def _with_tokens(spans: Iterator[Span], tokens: Sequence[Span]) -> Iterator[Word]:
    """Those with a token that has one of their characters; both are in order."""
    first = 0
    for start, end in spans:
        while first < len(tokens) and tokens[first][1] <= start:
            first += 1
        last = first
        for place in range(first, len(tokens)):
            if tokens[place][0] >= end and tokens[place][1] > tokens[place][0]:
                break
            if tokens[place][1] > tokens[place][0]:
                last = place + 1
        if last > first:
            yield Word(start, end, (first, last))

"""Sentences that differ in one thing that matters: hard negatives for xsim++.

The idea is Chen et al.'s (2023, ACL, arXiv 2306.12907): near copies of the English sentence,
each with another meaning. The rules, the word lists and so the scores are our own and compare
with no published ones. Kinds: negation (put in or taken out), antonym, entity (a name or thing
for another of its class) and number.

A function of (sentence, seed) alone: the order of a corpus, other sentences and earlier calls
change nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evaluation import negation
from evaluation.english import (
    AMBIGUOUS_AT_START,
    AS_NOUN,
    ENTITIES,
    THINGS,
    article_for,
    match_case,
)
from evaluation.negation import Edit

KINDS = ("negation", "antonym", "entity", "number")
PER_KIND = 4
DRAWS = 4  # of replacements for one name or number

NOTE = (
    "The corrupted copies come from this project's own rules: xsim++ scores from here do not "
    "compare with published ones, only with others from here."
)

_CLASS_OF = {name: kind for kind, names in ENTITIES.items() for name in names}
# Longest first, so that New York is not looked for as York; possessives and plurals stay.
_ENTITY = re.compile(
    r"(?<![\w-])("
    + "|".join(sorted(map(re.escape, _CLASS_OF), key=len, reverse=True))
    + r")(?![\w-])"
)
_THING = re.compile(
    r"(?<![\w-])(" + "|".join(map(re.escape, THINGS)) + r")(?![\w-])", re.IGNORECASE
)

_UNITS = (
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ("hundred", "thousand", "million", "billion")
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_NUMERALS = (_UNITS, _TEENS, _TENS, _SCALES, _ORDINALS)
_NUMERAL = re.compile(
    r"(?<!\w)(" + "|".join(n for numerals in _NUMERALS for n in numerals) + r")(?!\w)",
    re.IGNORECASE,
)
_TIME = re.compile(r"(?<![\w:.])([01]?\d|2[0-3]):([0-5]\d)(?![\w:]|\.\d)")
_ORDINAL = re.compile(r"(?<![\w.,:])(\d{1,3})(st|nd|rd|th)(?!\w)")
# Placeholders (%1, $1, {0}, #1), versions and identifiers are no quantities.
_DIGITS = re.compile(
    r"(?<![\w.,:%{\\#/$-])(\$?)(\d{1,3}(?:,\d{3})+|\d{1,9})((?:\.\d{1,4})?)(?![\w:}]|[.,/-]\d)"
)


@dataclass(frozen=True)
class Corruption:
    """text: the sentence, changed. kind: one of KINDS. rule: what was done, in words."""

    text: str
    kind: str
    rule: str


def corrupt(sentence: str, *, seed: int = 0, per_kind: int = PER_KIND) -> list[Corruption]:
    """At most `per_kind` corruptions of each kind, all different and none the sentence itself.

    A sentence that no rule fits has none. Texts are compared without regard to capitals and
    white space.
    """
    digest = hashlib.sha256(f"{seed}\0{sentence}".encode()).digest()
    draw = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    found: list[Corruption] = []
    seen = {_normal(sentence)}
    for kind, edits in (
        ("negation", ([edit] for edit in negation.edits(sentence))),
        ("antonym", ([edit] for edit in negation.opposites(sentence))),
        ("entity", _entities(sentence, draw)),
        ("number", _numbers(sentence, draw)),
    ):
        candidates = list(edits)
        kept = 0
        for i in draw.permutation(len(candidates)):
            text = _apply(sentence, candidates[i])
            if kept == per_kind or _normal(text) in seen:
                continue
            seen.add(_normal(text))
            found.append(Corruption(text, kind, candidates[i][0].rule))
            kept += 1
    return found


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _apply(sentence: str, edits: list[Edit]) -> str:
    """All edits at once, from the right; "a" and "an" before them follow the new word."""
    text = sentence
    for edit in sorted(edits, reverse=True):
        before, after = text[: edit.start], text[edit.end :]
        article = re.search(r"(?<![\w'’])([Aa])n?\s+$", before)
        if article is not None and edit.end > edit.start:
            fitting = match_case(article_for(edit.text), article[1])
            space = before[article.end(1) :].lstrip("n")
            before = before[: article.start()] + fitting + space
        text = before + edit.text + after
    return text


def _some(draw: np.random.Generator, choices: list[str]) -> list[str]:
    return [choices[i] for i in draw.permutation(len(choices))[:DRAWS]]


def _entities(sentence: str, draw: np.random.Generator) -> Iterator[list[Edit]]:
    """Tom likes Mary -> Bob likes Mary; every mention of one name goes together."""
    mentions: dict[str, list[re.Match[str]]] = {}
    for match in _ENTITY.finditer(sentence):
        begins = not sentence[: match.start()].strip(" \"'“‘(")
        if not (begins and match[1] in AMBIGUOUS_AT_START):
            mentions.setdefault(match[1], []).append(match)
    for name, matches in mentions.items():
        kind = _CLASS_OF[name]
        others = [n for n in ENTITIES[kind] if n not in sentence]
        if kind == "language" and re.search(r"\b[Aa]n? $", sentence[: matches[0].start()]):
            others = [n for n in others if n in AS_NOUN]
        for other in _some(draw, others):
            yield [Edit(m.start(), m.end(), other, kind) for m in matches]
    for match in _THING.finditer(sentence):
        if match[1].isupper():
            continue
        other = match_case(THINGS[match[1].lower()], match[1])
        if other.lower() not in sentence.lower():
            yield [Edit(match.start(), match.end(), other, "person or thing")]


def _numbers(sentence: str, draw: np.random.Generator) -> Iterator[list[Edit]]:
    """30 seconds -> 47 seconds; at 9:00 -> at 4:00; the 18th -> the 23rd; two -> seven."""
    for match in _TIME.finditer(sentence):
        hour, minute = match.groups()
        hours = range(13, 24) if int(hour) > 12 else range(1, 13)
        for other in _some(draw, [str(h).zfill(len(hour)) for h in hours if h != int(hour)]):
            yield [Edit(match.start(), match.end(), f"{other}:{minute}", "time")]
    for match in _ORDINAL.finditer(sentence):
        for other in _some(draw, _alike(match[1])):
            ending = _ordinal_ending(int(other))
            yield [Edit(match.start(), match.end(), other + ending, "ordinal")]
    for match in _DIGITS.finditer(sentence):
        sign, whole, part = match.groups()
        if whole == "1" and not part:
            continue  # "1 day" would need "days"
        for other in _some(draw, _alike(whole)):
            yield [Edit(match.start(), match.end(), sign + other + part, "digits")]
    for match in _NUMERAL.finditer(sentence):
        word = match[1].lower()
        alike = [n for numerals in _NUMERALS if word in numerals for n in numerals if n != word]
        if sentence[: match.start()].endswith("ty-"):  # twenty-five
            alike = [n for n in alike if n not in ("ten", "eleven", "twelve")]
        for other in _some(draw, alike):
            yield [Edit(match.start(), match.end(), match_case(other, match[1]), "numeral")]


def _alike(number: str) -> list[str]:
    """Numbers of the same look: as many digits, the same separators, near in size.

    Years stay years and days of a month stay below 29; never 1, which wants a singular.
    """
    value = int(number.replace(",", ""))
    if "," not in number and 1000 < value < 2100:
        values = {value + d for d in range(-60, 61) if value + d < 2100}
    elif value < 29:
        values = set(range(10, 29)) if value > 9 else set(range(2, 10))
    else:
        low = 10 ** (len(number.replace(",", "")) - 1)
        step = max(1, low // 10)
        values = {low * 10 - step * i for i in range(1, 90)} | {value + step, value - step}
        values = {v for v in values if low <= v < low * 10}
    form = ",d" if "," in number else "d"
    padded = len(number) if number.startswith("0") else 0
    return [format(v, form).zfill(padded) for v in sorted(values - {value})]


def _ordinal_ending(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")

"""Turn what an English sentence says into its contrary: with or without "not", by an opposite.

Rules over words and their neighbours, each for a construction that can be told without parsing;
where it cannot be told, nothing is offered. Inverted questions are left alone, since "Are you
not tired?" asks the same as "Are you tired?".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from evaluation.english import (
    CLEAR_PAST,
    CLEAR_THIRD,
    ENTITIES,
    NOT_AFTER,
    NOT_BEFORE,
    OPPOSITES,
    PARTICIPLES,
    PAST,
    THIRD,
    VERBS,
    match_case,
)

WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")

MODALS = frozenset({"will", "would", "can", "could", "should", "must", "shall", "may", "might"})
BE = frozenset({"is", "are", "was", "were", "am"})
HAVE = frozenset({"have", "has", "had"})
DO = frozenset({"do", "does", "did"})
SUBJECTS = frozenset({"i", "you", "he", "she", "it", "we", "they"})
THIRD_SUBJECTS = frozenset({"he", "she", "it"})
DETERMINERS = frozenset(
    ["the", "a", "an", "my", "your", "his", "her", "its", "our", "their", "this", "that", "these",
     "those", "any", "all", "each", "some", "no", "one"]
)  # fmt: skip
OBJECTS = frozenset({"me", "him", "them", "it", "us"})
QUESTION = frozenset(["what", "who", "whom", "whose", "which", "where", "when", "why", "how"])
OPENERS = frozenset(
    ["and", "but", "or", "so", "if", "that", "because", "when", "while", "as", "since", "though",
     "although", "until", "before", "after", "what", "who", "where", "how", "why", "whether"]
)  # fmt: skip
ADVERBS = frozenset(["always", "often", "usually", "really", "also", "still", "sometimes", "just"])
NEGATIVE = frozenset({"not", "never", "no", "nobody", "nothing", "hardly", "neither", "nor"})
NAMES = frozenset(ENTITIES["man's name"] + ENTITIES["woman's name"])

# What follows a negation reads otherwise without it, and the other way round.
WITHOUT_NOT = {
    "any": "some", "anything": "something", "anyone": "someone", "anybody": "somebody",
    "anywhere": "somewhere", "yet": "already", "either": "too", "anymore": "still",
}  # fmt: skip
WITH_NOT = {"some": "any", "something": "anything", "someone": "anyone", "somebody": "anybody"}
INVERSES = {
    "never": "always", "nobody": "everybody", "nothing": "everything", "nowhere": "everywhere",
    "cannot": "can", "neither": "both", "none": "all",
}  # fmt: skip


class Edit(NamedTuple):
    """Replace characters `start` to `end` by `text`; rule: why."""

    start: int
    end: int
    text: str
    rule: str


class Word(NamedTuple):
    start: int
    end: int
    text: str  # as written
    low: str  # in lower case, with a straight apostrophe


class Sentence:
    """A text cut into words, with what the rules ask about a word's surroundings."""

    def __init__(self, text: str):
        self.text = text
        self.words = [
            Word(m.start(), m.end(), m[0], m[0].lower().replace("’", "'"))
            for m in WORD.finditer(text)
        ]

    def joined(self, i: int) -> bool:
        """Is nothing but white space between words i - 1 and i?"""
        return i > 0 and self.text[self.words[i - 1].end : self.words[i].start].isspace()

    def before(self, i: int) -> str:
        """The word before word i in the same clause, "" where there is none."""
        return self.words[i - 1].low if self.joined(i) else ""

    def after(self, i: int) -> str:
        """The word after word i in the same clause, "" where there is none."""
        return self.words[i + 1].low if i + 1 < len(self.words) and self.joined(i + 1) else ""

    def begins(self, i: int) -> bool:
        """Does word i begin a sentence?"""
        return i == 0 or re.search(r"[.!?:]\W*$", self.text[: self.words[i].start]) is not None

    def asks(self, i: int) -> bool:
        """Does the sentence that word i is in end with a question mark?"""
        rest = re.search(r"[.!?](?=\W*(\s|$))", self.text[self.words[i].end :])
        return rest is not None and rest[0] == "?"

    def first_auxiliary(self, i: int) -> bool:
        """Is word i the first of its sentence that a question would put before the subject?"""
        while i > 0 and not self.begins(i):
            i -= 1
            if self.words[i].low in MODALS | BE | HAVE | DO:
                return False
        return True


def edits(text: str) -> Iterator[Edit]:
    """All negations that can be put in or taken out of `text`, one at a time."""
    sentence = Sentence(text)
    for i, word in enumerate(sentence.words):
        for rule in (_inserted, _contracted, _with_do, _imperative, _removed, _inverse):
            yield from rule(sentence, i, word)


def opposites(text: str) -> Iterator[Edit]:
    """All words of `text` that have an opposite, replaced one at a time."""
    sentence = Sentence(text)
    for i, word in enumerate(sentence.words):
        opposite = OPPOSITES.get(word.low)
        if opposite is None or (word.text.isupper() and len(word.text) > 1):
            continue
        if sentence.after(i) in NOT_BEFORE.get(word.low, ()):
            continue
        if sentence.before(i) in NOT_AFTER.get(word.low, ()):
            continue
        yield Edit(word.start, word.end, match_case(opposite, word.text), "opposite")


def _is_open(sentence: Sentence, i: int) -> bool:
    """May "not" follow word i, an auxiliary? Not where inverted, negated or a noun."""
    word, before, after = sentence.words[i], sentence.before(i), sentence.after(i)
    return (
        word.text.islower()
        and before
        not in {"", "to", "not", *DETERMINERS - {"this", "that", "these", "those", "all"}}
        and after not in SUBJECTS | NEGATIVE
        and not (word.low in MODALS and after == "")  # his last will
        and not (sentence.asks(i) and sentence.first_auxiliary(i))
    )


def _inserted(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """She is late -> She is not late; he will come -> he will not come."""
    if word.low in BE | MODALS and _is_open(sentence, i) and not sentence.before(i).isdigit():
        end = "not" if word.low == "can" else " not"
        yield Edit(word.end, word.end, end, "not after an auxiliary")
    elif word.low in HAVE and _is_open(sentence, i):
        after = sentence.after(i)
        perfect = after in PARTICIPLES | PAST.keys() or after in {"already", "just", "also"}
        if perfect and sentence.before(i) not in MODALS | DO:
            yield Edit(word.end, word.end, " not", "not after an auxiliary")


def _contracted(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """I'm tired -> I'm not tired; we'll see -> we won't see; you've seen -> you haven't seen."""
    stem, _, ending = word.low.rpartition("'")
    after = sentence.after(i)
    if stem not in SUBJECTS | {"there", "that", "this"} or after in NEGATIVE | {"", "better"}:
        return
    spelled = word.text[: len(stem)]
    if ending in ("m", "re", "s"):
        yield Edit(word.end, word.end, " not", "not after a contraction")
    elif ending == "ll":
        yield Edit(word.start, word.end, f"{spelled} won't", "not after a contraction")
    elif ending == "ve":
        yield Edit(word.start, word.end, f"{spelled} haven't", "not after a contraction")
    elif ending == "d" and after in {"like", "love", "prefer"}:
        yield Edit(word.start, word.end, f"{spelled} wouldn't", "not after a contraction")


def _with_do(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """She likes it -> She does not like it; the man ate bread -> the man did not eat bread."""
    if not word.text.islower() or sentence.after(i) in NEGATIVE:
        return
    subject = i - 1
    start = word.start
    if sentence.before(i) in ADVERBS and subject > 0 and sentence.joined(subject):
        start = sentence.words[subject].start
        subject -= 1
    if subject < 0 or not sentence.joined(i):
        return
    auxiliary = _auxiliary(sentence, subject, word.low)
    if auxiliary is None:
        return
    if word.low in HAVE and sentence.after(i) in PARTICIPLES | PAST.keys() | {"better"}:
        return  # the perfect, which _inserted has
    base = (VERBS.get(word.low) or THIRD.get(word.low) or PAST[word.low]).base
    end, following = word.end, sentence.after(i)
    adverb = sentence.text[start : word.start]
    replaced = f"{auxiliary} not {adverb}{base}"
    if following in WITH_NOT:
        end = sentence.words[i + 1].end
        replaced += " " + WITH_NOT[following]
    yield Edit(start, end, replaced, "do not before a verb")


def _auxiliary(sentence: Sentence, subject: int, verb: str) -> str | None:
    """do, does or did, whichever the verb after that subject takes; None when unsure."""
    word, before = sentence.words[subject], sentence.before(subject)
    third, past, base = verb in THIRD, verb in PAST, verb in VERBS
    if word.low in SUBJECTS:
        # "I made you laugh": you and it are objects as often as subjects.
        object_ = word.low in {"you", "it"} and before not in OPENERS | {""}
        if object_ or before in MODALS | DO | BE | HAVE:
            return None
        if word.low not in THIRD_SUBJECTS and base:
            return "do"
        third = third and word.low in THIRD_SUBJECTS
    elif word.text in NAMES:
        if before in MODALS | DO | {"for", "to", "with", "of", "than"}:
            return None
        third, past = third and before != "and", past and not base
    elif before in DETERMINERS and word.text.islower() and word.low not in VERBS | OPPOSITES:
        if sentence.before(subject - 1) in MODALS | DO | BE | HAVE | {"of", "with", "in", "than"}:
            return None
        third, past = verb in CLEAR_THIRD, verb in CLEAR_PAST
    else:
        return None
    return "does" if third else "did" if past else None


def _imperative(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """Open the door -> Do not open the door; Shows the list -> Does not show the list."""
    if not (word.text[0].isupper() and sentence.begins(i)) or sentence.asks(i):
        return
    if sentence.after(i) not in DETERMINERS | OBJECTS:
        return
    for forms, auxiliary in ((VERBS, "Do"), (THIRD, "Does")):
        verb = forms.get(word.low)
        if verb is not None and verb.base not in {"do", "have"}:
            yield Edit(word.start, word.end, f"{auxiliary} not {verb.base}", "do not before a verb")


def _removed(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """He is not rich -> He is rich; I don't know anything -> I know something."""
    after = sentence.after(i)
    if word.low == "not":
        auxiliary = sentence.before(i)
        if re.search(r"'(m|re|s|ll|ve|d)$", auxiliary) and after not in {"only", ""}:
            yield Edit(sentence.words[i - 1].end, word.end, "", "without not")
            return
        if auxiliary not in MODALS | BE | HAVE | DO or after in {"only", "necessarily", ""}:
            return
        first = i - 1
    elif word.low.endswith("n't") and after not in SUBJECTS | {"", "there"}:
        auxiliary = {"won't": "will", "can't": "can"}.get(word.low, word.low[:-3])
        if auxiliary not in MODALS | BE | HAVE | DO:
            return
        first = i
    else:
        return
    if sentence.asks(i) and sentence.first_auxiliary(first):
        return
    start, last = sentence.words[first].start, i
    text = match_case(auxiliary, sentence.words[first].text)
    if auxiliary in DO:
        verb = VERBS.get(after)
        if after == "be":  # Don't be late -> Be late
            last = i + 1
            text = match_case("be", sentence.words[first].text)
        elif verb is not None:
            last = i + 1
            form = {"do": verb.base, "does": verb.third, "did": verb.past}[auxiliary]
            text = match_case(form, sentence.words[first].text)
    text, last = _positive(sentence, text, last)
    yield Edit(start, sentence.words[last].end, text, "without not")


def _positive(sentence: Sentence, text: str, last: int) -> tuple[str, int]:
    """Extend the edit over the rest of the clause, if something there leans on the negation."""
    for j in range(last + 1, len(sentence.words)):
        word = sentence.words[j]
        if not sentence.joined(j):
            break
        if word.low in WITHOUT_NOT:
            between = sentence.text[sentence.words[last].end : word.start]
            return text + between + WITHOUT_NOT[word.low], j
    return text, last


def _inverse(sentence: Sentence, i: int, word: Word) -> Iterator[Edit]:
    """He never smiles -> He always smiles; nobody came -> everybody came."""
    after = sentence.after(i)
    if word.low in INVERSES and after != "mind":
        text = match_case(INVERSES[word.low], word.text)
        yield Edit(word.start, word.end, text, "without not")
    elif word.low == "no" and after in {"one", "longer"}:
        text = match_case("everyone" if after == "one" else "still", word.text)
        yield Edit(word.start, sentence.words[i + 1].end, text, "without not")
    elif word.low == "no" and sentence.before(i) in BE | HAVE:
        # There is no doubt: "a" would need a countable noun, "some" needs none.
        yield Edit(word.start, word.end, "some", "without not")

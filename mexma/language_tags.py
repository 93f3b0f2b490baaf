"""Language tags (BCP 47) that mean what they say.

A tag of the right shape that no language is registered as (`german`, `jp`), or one of two codes for the
same language (`deu` beside `de`), matches no document and no detected language, and is a language of its
own in training; nobody notices. So tags are brought to the form that BCP 47 asks for, and a primary language
that is registered nowhere is refused. Scripts, regions and variants are held to their shape alone.

Refuses to know: collections, HTTP, files of pairs, how languages are detected.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

MAX_TAG_CHARACTERS = 35
# RFC 5646, 2.1, with `_` as POSIX and Java write it, and without tags from before it (`i-klingon`).
LANGUAGE_TAG = re.compile(
    "([A-Za-z]{2,3}([_-][A-Za-z]{3})?([_-][A-Za-z]{4})?([_-]([A-Za-z]{2}|[0-9]{3}))?"
    "([_-]([A-Za-z0-9]{5,8}|[0-9][A-Za-z0-9]{3}))*"
    "([_-][0-9A-WYZa-wyz]([_-][A-Za-z0-9]{2,8})+)*([_-][Xx]([_-][A-Za-z0-9]{1,8})+)?"
    "|[Xx]([_-][A-Za-z0-9]{1,8})+)"
)
LONG_REGION = re.compile("[A-Za-z]{2,3}([_-][A-Za-z]{4})?[_-]([A-Za-z]{3}|[0-9]{1,2})")

# Languages' former codes, some of which Java and Android still give, by IANA's registry of subtags.
REPLACED = {"in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro", "mol": "ro"}
# What is taken for a language's code or name: of countries, those that are no other language's code.
MEANT = {
    "cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "jp": "ja", "ua": "uk", "us": "en", "vn": "vi",
    "deutsch": "de", "espanol": "es", "francais": "fr", "italiano": "it", "mandarin": "zh",
}  # fmt: skip


class _Registry(NamedTuple):
    """primary: subtags of languages. preferred: codes of ISO 639-2 -> those of two letters. extended:
    languages that may follow one, as `yue` does in `zh-yue`. names: lower-case English name -> subtag."""

    primary: frozenset[str]
    preferred: dict[str, str]
    extended: dict[str, frozenset[str]]
    names: dict[str, str]


@cache
def _registry() -> _Registry:
    primary: set[str] = set()
    preferred = dict(REPLACED)
    extended: dict[str, frozenset[str]] = {}
    names: dict[str, str] = {}
    text = files("mexma.data").joinpath("language_subtags.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        first, *columns = line.split("\t")
        if not columns:
            primary.update(first.split())
        elif first.endswith("-"):
            extended[first[:-1]] = frozenset(columns[0].split())
        else:
            primary.add(first)
            preferred |= dict.fromkeys(columns[0].split(), first)
            names |= {name.lower(): first for name in columns[1].split(", ")}
    return _Registry(frozenset(primary), preferred, extended, names)


def is_registered(primary: str) -> bool:
    """Whether a language has this code, or it is one for private use. In lower case."""
    return primary in _registry().primary or primary == "x" or "qaa" <= primary <= "qtz"


@lru_cache(4096)  # the documents of an upsert have few languages between them; errors are not kept
def canonical_tag(tag: str) -> str:
    """A language tag as RFC 5646 (2.1.1, 4.5) advises to write it: zh-Hant-TW, and de for deu.

    Raises ValueError that says what was expected, and which tag may have been meant.
    """
    if len(tag) > MAX_TAG_CHARACTERS or not LANGUAGE_TAG.fullmatch(tag):
        raise ValueError(_refusal(tag))
    first, *rest = re.split("[_-]", tag)
    primary = _primary(first)
    if not is_registered(primary):
        raise ValueError(_refusal(tag))
    follows = rest[0].lower() if rest and primary != "x" else ""
    # Of three letters it is another language; regions have three digits.
    of_three = len(follows) == 3 and follows.isalpha()
    if of_three and follows not in _registry().extended.get(primary, ()):
        raise ValueError(_refusal(tag))
    return "-".join([primary, *_canonical(rest, of_own=primary == "x")])


def meant_by(tag: str) -> str | None:
    """What may be meant by a tag that is no language's: `ja` by `jp`, `de` by `German`; None if unknown."""
    name = re.split("[_-]", tag.strip().lower())[0]
    meant = MEANT.get(name) or _registry().names.get(name)
    return meant if meant and not is_registered(name) else None


def _canonical(subtags: list[str], *, of_own: bool) -> list[str]:
    """of_own: they follow an `x`. What follows one character is no region or script."""
    written = []
    for subtag in subtags:
        of_own = of_own or len(subtag) == 1
        if of_own or len(subtag) not in (2, 4) or not subtag.isalpha():
            written.append(subtag.lower())
        else:
            written.append(subtag.upper() if len(subtag) == 2 else subtag.title())
    return written


def _refusal(tag: str) -> str:
    shown = repr(tag if len(tag) <= 40 else tag[:40] + "…")
    says = f"expected a BCP 47 tag such as 'fi' or 'pt-BR', found {shown}"
    if LONG_REGION.fullmatch(tag) and is_registered(_primary(tag)):
        return f"{says}: a region has two letters or three digits"
    if meant := meant_by(tag):
        return f"{says}, which is no language's; {meant!r} may be meant"
    if LANGUAGE_TAG.fullmatch(tag):
        return f"{says}, which is no language's"
    return says


def _primary(tag: str) -> str:
    """The language of a tag, of whatever shape the rest is."""
    first = re.split("[_-]", tag)[0].lower()
    return _registry().preferred.get(first, first)

"""Tags of languages: brought to one form, kept where they have it, refused in words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma.language_tags import (
    LANGUAGE_TAG,
    MAX_TAG_CHARACTERS,
    _registry,
    canonical_tag,
    is_registered,
)
from mexma.sample import tatoeba_sample
from service.languages import FOLDED, RARE, LanguageDetector
from training.phrases import cldr_phrases

KEPT = [
    "fi", "pt-BR", "zh-Hant", "zh-Hant-HK", "es-419", "sr-Latn-BA", "ca-valencia", "rm-sursilv",
    "sl-rozaj-biske", "de-1996", "kmr-Latn", "yue", "yue-Hans", "ceb", "zza", "cmn", "arb", "pes", "fil",
    "hyw", "tzm", "und", "mul", "zxx", "mis", "qaa", "qtz-Latn", "zh-yue", "sgn-ase", "en-x-our", "x-ours",
    "de-u-co-phonebk", "en-t-ja-x-de",
]  # fmt: skip

# Of ISO 639-2, all there are and will be.
BIBLIOGRAPHIC = {
    "sq": "alb", "hy": "arm", "eu": "baq", "my": "bur", "zh": "chi", "cs": "cze", "nl": "dut",
    "fr": "fre", "ka": "geo", "de": "ger", "el": "gre", "is": "ice", "mk": "mac", "mi": "mao",
    "ms": "may", "fa": "per", "ro": "rum", "sk": "slo", "bo": "tib", "cy": "wel",
}  # fmt: skip


@pytest.mark.parametrize("tag", KEPT)
def test_a_tag_in_its_form_stays(tag):
    assert canonical_tag(tag) == tag
    assert canonical_tag(tag.upper()) == tag
    assert canonical_tag(tag.replace("-", "_")) == tag


@pytest.mark.parametrize(
    ("tag", "form"),
    [
        ("deu", "de"), ("ger", "de"), ("eng", "en"), ("fra", "fr"), ("fre-ca", "fr-CA"), ("zho", "zh"),
        ("CHI_TW", "zh-TW"), ("pt_BR", "pt-BR"), ("zh_hant_tw", "zh-Hant-TW"), ("srp-LATN", "sr-Latn"),
        ("iw", "he"), ("in-ID", "id-ID"), ("mol", "ro"), ("heb", "he"),
        ("DE-U-CO-PHONEBK", "de-u-co-phonebk"),
    ],
)  # fmt: skip
def test_a_language_has_one_code(tag, form):
    assert canonical_tag(tag) == form


def test_every_language_of_two_letters_has_its_codes_of_three():
    preferred = _registry().preferred
    assert len({two for two in preferred.values() if len(two) == 2}) >= 184
    for two, code in BIBLIOGRAPHIC.items():
        assert preferred[code] == two
    for code, two in preferred.items():
        assert canonical_tag(code) == two == canonical_tag(two)
        assert not is_registered(code) or code in ("in", "iw", "ji", "jw", "mo")


def test_what_is_detected_and_what_is_here_stays():
    detected = {FOLDED.get(label, label) for label in LanguageDetector()._loaded().nb_classes}
    here = {s.lang for s in tatoeba_sample()} | {p.lang for p in cldr_phrases()}
    assert len(detected) > 100
    for tag in here | detected | RARE:
        assert canonical_tag(tag) == tag


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("german", "; 'de' may be meant"), ("English", "; 'en' may be meant"), ("jp", "; 'ja' may be meant"),
        ("cn", "; 'zh' may be meant"), ("zh-CN-", None), ("deutsch", "; 'de' may be meant"),
        ("portuguese", "; 'pt' may be meant"), ("greek", "; 'el' may be meant"),
        ("jp-JP", "; 'ja' may be meant"),
        ("xx", ", which is no language's"), ("xyz-DE", ", which is no language's"),
        ("pt-BRA", ": a region has two letters or three digits"), ("deu_DEU", ": a region has two letters"),
        ("es-41", ": a region has two letters or three digits"),
        ("f", None), ("", None), ("en-", None), ("-en", None), ("en--GB", None), ("sr@latin", None),
        ("pt_BR.UTF-8", None), ("ſv", None), ("de-ＤＥ", None), ("es-٤١٩", None), ("en\n", None), ("x", None),
        ("en-GB-GB", None), ("en-a", None), ("en-" + "x" * 99, None),
    ],
)  # fmt: skip
def test_what_is_no_language_is_refused_and_what_may_be_meant_is_said(tag, says):
    with pytest.raises(
        ValueError, match=r"^expected a BCP 47 tag such as 'fi' or 'pt-BR'"
    ) as refused:
        canonical_tag(tag)
    message = str(refused.value)
    assert len(message) < 150
    if says is None:
        assert "may be meant" not in message
    else:
        assert says in message


@given(
    st.from_regex(re.compile(LANGUAGE_TAG.pattern, re.ASCII), fullmatch=True) | st.text(max_size=12)
)
def test_a_form_is_its_own_form(tag):
    try:
        form = canonical_tag(tag)
    except ValueError:
        return
    assert canonical_tag(form) == form
    assert len(form) <= MAX_TAG_CHARACTERS
    assert LANGUAGE_TAG.fullmatch(form)
    assert form.lower().split("-")[1:] == re.split("[_-]", tag.lower())[1:]

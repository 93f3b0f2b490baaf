"""Which languages are embedded, and what a language costs in tokens, estimated from a sample.

Every text's language would cost 0.2 ms each; one text in `every` is looked at and stands for the
texts since the one before. So the counts of all languages add up to the texts embedded, and
sampled tokens over sampled characters is a language's fertility: how many tokens this
tokenizer spends on what it writes, which is what quotas and latency are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

from mexma.text import Tokens
from service.languages import LanguageDetector
from service.metrics import Metrics

MOST_PER_REQUEST = 4
"""Looked at in one request, which bounds what a large one waits for this to about a millisecond."""


class LanguageMeter:
    """every: one text in so many is looked at; 0 looks at none."""

    def __init__(self, detector: LanguageDetector, metrics: Metrics, *, every: int):
        self._detector = detector
        self._metrics = metrics
        self._every = every
        self._since_last = 0

    def observe(self, texts: Sequence[str], tokens: Sequence[Tokens | None]) -> None:
        """Note one request's texts; tokens: beside each text, None where it had none."""
        if not self._every:
            return
        stride = max(self._every, -(-len(texts) // MOST_PER_REQUEST))
        last = (
            -1 - self._since_last
        )  # where the text looked at last stands, counted from this request
        for i in range(max(0, last + stride), len(texts), stride):
            self._note(texts[i], tokens[i], i - last)
            last = i
        self._since_last = len(texts) - 1 - last

    def _note(self, text: str, tokens: Tokens | None, stands_for: int) -> None:
        lang = self._detector.detect(text)
        self._metrics.language(
            lang=lang,
            items=stands_for,
            tokens=None if tokens is None else tokens.seen,
            characters=len(text),
        )

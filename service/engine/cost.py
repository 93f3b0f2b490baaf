"""What a batch costs on this engine, learnt from the batches that ran.

A straight line, `seconds = base + per_token * tokens`, fitted with recent batches counting more:
good enough to say when a queue will be empty and how many tokens fit into a time.
"""

from __future__ import annotations

from math import exp

# Seconds of work after which what was seen of the pace before counts for a third.
MEMORY_S = 5.0
# The pace is known once so many seconds of work were seen.
KNOWN_S = 0.5

# The weight of a batch falls by this factor with each later one: about the last 50 count.
DECAY = 0.98


class BatchCost:
    """The line, and the batches it was fitted to. Tokens include padding."""

    def __init__(self, *, tokens_per_s: float = 1000.0):
        """tokens_per_s: a guess until the first batch has been timed."""
        self.base_s = 0.0
        self.s_per_token = 1.0 / tokens_per_s
        self._weight = self._t = self._tt = self._s = self._ts = 0.0

    @property
    def tokens_per_s(self) -> float:
        """The rate of the batches seen lately."""
        return self._t / self._s if self._s > 0 else 1.0 / self.s_per_token

    def seconds(self, tokens: float) -> float:
        """The time of a batch of `tokens`."""
        return self.base_s + self.s_per_token * tokens

    def tokens_within(self, seconds: float) -> float:
        """The largest batch that takes no longer than `seconds`; 0 when none does."""
        return max(0.0, (seconds - self.base_s) / self.s_per_token)

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds`."""
        t, s = float(tokens), max(seconds, 1e-7)
        self._weight = self._weight * DECAY + 1
        self._t = self._t * DECAY + t
        self._tt = self._tt * DECAY + t * t
        self._s = self._s * DECAY + s
        self._ts = self._ts * DECAY + t * s
        mean_t, mean_s = self._t / self._weight, self._s / self._weight
        spread = self._tt / self._weight - mean_t * mean_t
        slope = self._ts / self._weight - mean_t * mean_s
        # Batches of one size say nothing about the slope, and noise can turn it round: then
        # the line goes through the origin, which makes quanta small rather than large.
        slope = slope / spread if spread > 1e-3 * mean_t * mean_t else 0.0
        proportional = mean_s / mean_t
        self.s_per_token = slope if 0.02 * proportional < slope < proportional else proportional
        self.base_s = max(0.0, mean_s - self.s_per_token * mean_t)


class Pace:
    """How fast a queue empties: tokens a second over the batches behind which others waited.

    What runs alone says nothing of it: a batch of one short text takes nearly as long as one of ten.
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took `seconds` while others waited."""
        kept = exp(-seconds / MEMORY_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + max(seconds, 1e-7)

    @property
    def tokens_per_s(self) -> float | None:
        """None as long as too little was seen."""
        return self._tokens / self._seconds if self._seconds >= KNOWN_S else None

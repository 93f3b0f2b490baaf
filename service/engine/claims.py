"""Who was refused and told when to come back, so that what they were told is true.

Under load that lasts, a queue is full again whenever a place becomes free, and "come back in 5 s" is
a lottery ticket. So a refusal is remembered for as long as it says, and whoever comes back with the
same request when told goes before those who come for the first time. The time told is a place in
line: what waits, and those told before that will come back, run first.

Most never come back. How many do is learnt, and of those who are outstanding that share counts; who
did come back, and was refused all the same, is expected again for certain.
Half of the engine is promised away at most, so that what is in the queue already goes on.

Refuses to know: HTTP, queues, what a key is made of. Lives on one event loop.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass

# By what a request is known when it comes back; None where it cannot.
current: ContextVar[int | None] = ContextVar("claim", default=None)

# Clocks and timers differ by so much.
EARLY_S = 0.02
# So long after its time a claim still holds: `Retry-After` counts in whole seconds.
GRACE_S = 3.0
# Nobody is sent away for longer; what is told then is an estimate as good as any.
LONGEST_S = 60.0
# The share of the engine that those who come back may take while others wait.
SHARE = 0.5
MAX_CLAIMS = 65_536
# The share is taken to be no smaller: where many did not come back, who does needs a place all the same.
LEAST_RETURNING = 0.1
# How fast the share of those who come back is learnt: about the last 50 count.
LEARNING = 0.02


@dataclass(slots=True)
class _Claim:
    """tokens: that it will need. due, until: times between which it holds. sure: of one that came back
    before."""

    tokens: int
    due: float
    until: float
    sure: bool


class Claims:
    """Times in seconds of the caller's clock."""

    def __init__(self) -> None:
        self._claims: dict[Hashable, _Claim] = {}
        self._ends: list[tuple[float, int, Hashable]] = []
        self._numbers = 0
        self._tokens = {False: 0, True: 0}  # of claims that are sure, and not
        self.returning = 0.5
        """The share of claims that were made use of lately."""

    def __len__(self) -> int:
        return len(self._claims)

    def is_due(self, key: Hashable, now: float) -> bool:
        """Whether it was told to come back about now."""
        self._expire(now)
        claim = self._claims.get(key)
        return claim is not None and now >= claim.due - EARLY_S

    def tell(
        self, key: Hashable, tokens: int, wait_s: float, *, tokens_per_s: float, now: float
    ) -> float:
        """Seconds after which `key` shall come back.

        wait_s: until what waits has run. One that comes too early keeps its time.
        """
        self._expire(now)
        claim = self._claims.get(key)
        if claim is not None and now < claim.due - EARLY_S:
            return claim.due - now
        came_back = self._came_back(key)
        share = max(self.returning, LEAST_RETURNING)
        expected = self._tokens[False] * share + self._tokens[True]
        told_s = min(wait_s + expected / (SHARE * tokens_per_s), LONGEST_S)
        if key is not None and len(self._claims) < MAX_CLAIMS:
            due = now + told_s
            claim = self._claims[key] = _Claim(tokens, due, due + GRACE_S, came_back)
            self._tokens[came_back] += tokens
            self._numbers += 1  # keys cannot be compared
            heapq.heappush(self._ends, (claim.until, self._numbers, key))
        return told_s

    def redeem(self, key: Hashable) -> None:
        """It came back and was taken, whenever that was."""
        self._came_back(key)

    def _came_back(self, key: Hashable) -> bool:
        """Whether it had a claim, which is used up."""
        if not self._forget(key):
            return False
        self.returning += LEARNING * (1 - self.returning)
        return True

    def _forget(self, key: Hashable) -> bool:
        claim = self._claims.pop(key, None)
        if claim is None:
            return False
        self._tokens[claim.sure] -= claim.tokens
        return True

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] < now:
            until, _, key = heapq.heappop(self._ends)
            claim = self._claims.get(key)
            if claim is not None and claim.until == until:
                self._forget(key)
                self.returning -= LEARNING * self.returning

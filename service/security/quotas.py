"""Tokens a minute for each client: a bucket that fills at that pace and holds one minute's worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mexma.errors import Overloaded, QuotaExceeded

# The bucket of the client whose request is being answered; None without a quota.
current: ContextVar[Bucket | None] = ContextVar("quota", default=None)


class Bucket:
    """Lives on one event loop."""

    def __init__(self, tokens_per_minute: int, *, clock: Callable[[], float] = time.monotonic):
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._level = float(tokens_per_minute)
        self._at = clock()

    def level(self) -> int:
        """Tokens that may be spent now; not below 0."""
        self._fill()
        return max(0, int(self._level))

    def take(self, tokens: int) -> None:
        """Spend `tokens`. Raises QuotaExceeded that says when they would be granted.

        A request larger than a minute's worth is granted by a full bucket, and what it is over is
        a debt: such a request must be possible, and it is paid for in time all the same.
        """
        self._fill()
        needed = min(tokens, self.tokens_per_minute)
        if needed > self._level:
            debt = math.ceil(-self._level)
            owed = f": an earlier request was larger, {debt} are still owed" if debt > 0 else ""
            raise QuotaExceeded(
                f"the request has {tokens} tokens, of {self.tokens_per_minute} a minute "
                f"{max(0, int(self._level))} are left{owed}",
                retry_after_s=(needed - self._level) * 60 / self.tokens_per_minute,
                limit=self.tokens_per_minute,
            )
        self._level -= tokens

    def give_back(self, tokens: int) -> None:
        """They were not used."""
        self._level = min(self._level + tokens, float(self.tokens_per_minute))

    def _fill(self) -> None:
        now = self._clock()
        gained = (now - self._at) * self.tokens_per_minute / 60
        self._level = min(self._level + gained, float(self.tokens_per_minute))
        self._at = now


class Quotas:
    """A bucket for each client that has a quota."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def of(self, name: str, tokens_per_minute: int | None) -> Bucket | None:
        """The client's bucket; a changed quota begins with a full one."""
        if tokens_per_minute is None:
            return None
        bucket = self._buckets.get(name)
        if bucket is None or bucket.tokens_per_minute != tokens_per_minute:
            bucket = self._buckets[name] = Bucket(tokens_per_minute, clock=self._clock)
        return bucket


@contextmanager
def spending(tokens: int) -> Iterator[None]:
    """Take `tokens` from the current client's quota, if it has one; they are given back when the
    queue refuses the work, and not when a client leaves while it is done. Raises QuotaExceeded."""
    bucket = current.get()
    if bucket is None or not tokens:
        yield
        return
    bucket.take(tokens)
    try:
        yield
    except Overloaded:
        bucket.give_back(tokens)
        raise

"""Who is let into the queue of an engine, and who is told when to come back.

The waiting tokens are bounded, and so is how long interactive work would wait. Beyond that, or where a
deadline would pass first, callers are refused, those who hold most of the queue before those who hold
little; and whoever comes back when told to is let in up to twice of what newcomers may fill.

Refuses to know: the engine's thread, what jobs are. Its owner holds the lock of the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

from mexma.errors import Overloaded
from service.engine.claims import Claims
from service.engine.cost import BatchCost, Pace
from service.engine.lanes import Lane, Lanes

# So much longer than the wait it is told for, a time needs no explanation.
SLACK_S = 0.5


class Asked(NamedTuple):
    """Room for so many tokens. deadline: until when they must have begun, by the clock of `now`. claim:
    by what the same request of this client is known when it comes back, or None. before: tokens that
    have been let in and will be in the queue first."""

    tokens: int
    lane: Lane
    client: Hashable
    deadline: float | None = None
    claim: int | None = None
    before: float = 0.0


class Admission:
    """Of one engine's lanes. returned: is told of each that came back when told to, whether it was let in.

    Until the pace of the queue is known, waits are told by what was measured at the start, `expected`
    tokens a second, or where nothing was, by `cost`, of a batch.
    """

    def __init__(
        self,
        lanes: Lanes,
        cost: BatchCost,
        *,
        max_queue_tokens: int,
        max_wait_s: float,
        returned: Callable[[bool], None],
    ):
        self._lanes = lanes
        self._cost = cost
        self._max_queue_tokens = max_queue_tokens
        self._max_wait_s = max_wait_s
        self._returned = returned
        self._claims = Claims()
        self.pace = Pace()
        self.expected: float | None = None

    def refusal(self, asked: Asked, now: float) -> Overloaded | None:
        """Why there is no room now, with when to come back; None if there is."""
        if not asked.tokens or not (self._lanes.tokens or asked.before):
            return None
        due = self._is_due(asked, now)
        reason, wait_s = self._reason(asked, now, due)
        if reason is None:
            return None
        if due:
            self._returned(False)
        key = None if asked.claim is None else (asked.client, asked.claim)
        told_s = self._claims.tell(key, asked.tokens, wait_s, tokens_per_s=self._rate, now=now)
        # The rest is the claims of others. (A wait beyond LONGEST_S is told as that.)
        kept = f" in {told_s:.1f} s: those who were told to come before have the places until then"
        later = kept if told_s > wait_s + SLACK_S else " later"
        return Overloaded(f"{reason}; retry{later}", retry_after_s=told_s)

    def admit(self, asked: Asked, now: float) -> bool:
        """Whether they go before what else waits of their client. Raises Overloaded."""
        if (error := self.refusal(asked, now)) is not None:
            raise error
        due = self._is_due(asked, now)
        if asked.claim is not None:
            self._claims.redeem((asked.client, asked.claim))
        if due:
            self._returned(True)
        return due

    @property
    def _rate(self) -> float:
        return self.pace.tokens_per_s or self.expected or self._cost.tokens_per_s

    def _is_due(self, asked: Asked, now: float) -> bool:
        if asked.claim is None or not self._claims:
            return False
        return self._claims.is_due((asked.client, asked.claim), now)

    def _reason(self, asked: Asked, now: float, due: bool) -> tuple[str | None, float]:
        """Why not, and how long that lasts. A client that has nothing waiting in an empty queue is
        always let in."""
        tokens, limit = asked.tokens, self._max_queue_tokens
        waiting = self._lanes.tokens_ahead(asked.lane) + int(asked.before)
        if not waiting:
            return None, 0.0
        holds = f"the queue holds {waiting} tokens and {tokens} more would"
        if waiting + tokens > limit and not (
            waiting + tokens <= 2 * limit and (due or self._within_share(asked))
        ):
            return f"{holds} exceed its limit of {limit}", waiting / self._rate
        patience_s = self._max_wait_s if asked.lane == "interactive" else math.inf
        if due:
            patience_s *= 2
        elif asked.deadline is not None:
            patience_s = min(patience_s, asked.deadline - now)
        rate = self.pace.tokens_per_s
        if rate is None or patience_s == math.inf:
            return None, 0.0  # a guess of the pace refuses nobody
        if waiting <= patience_s * rate and not self._lanes.tokens_of(asked.client):
            return None, 0.0  # at once for most
        wait_s = asked.before / rate + self._lanes.wait_s(
            asked.client, asked.lane, tokens, tokens_per_s=rate, now=now
        )
        if wait_s <= patience_s:
            return None, 0.0
        return f"{holds} wait {wait_s:.1f} s, longer than they may ({patience_s:.1f} s)", wait_s

    def _within_share(self, asked: Asked) -> bool:
        """When the queue is full, a client may still have its share of half of it: one that sends
        too much fills the queue for itself, not for the others."""
        own = self._lanes.tokens_of(asked.client)
        share = self._max_queue_tokens / 2 / (self._lanes.clients() + (own == 0))
        return own + asked.tokens <= share

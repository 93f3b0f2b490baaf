"""How many tokens have their states in memory at once, from admission until the answer is made.

A token's state is as large as a whole text's vector, and its numbers as JSON three times that: what the
queue may hold in token ids would not fit into memory as states. So requests for them hold room, and are
refused where there is none.

Refuses to know: engines, queues, HTTP. Lives on one event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from mexma.errors import Overloaded

# Requests of the largest size, of all clients at once; of each client half as many.
AT_ONCE = 4


class StateRoom:
    """tokens_per_s: about how fast the engine is, for when to come back."""

    def __init__(self, largest: int, *, tokens_per_s: Callable[[], float]):
        """largest: tokens of the largest request."""
        self._limit = AT_ONCE * largest
        self._tokens_per_s = tokens_per_s
        self._held: Counter[Hashable] = Counter()

    @property
    def held(self) -> int:
        """Tokens."""
        return self._held.total()

    @contextmanager
    def of(self, client: Hashable, tokens: int) -> Iterator[None]:
        """Hold room for so many tokens. Raises Overloaded."""
        own, held = self._held[client], self.held
        if held + tokens > self._limit or own + tokens > self._limit // 2:
            whose, there, limit = (
                ("this client's", own, self._limit // 2)
                if held + tokens <= self._limit
                else ("all", held, self._limit)
            )
            raise Overloaded(
                f"{whose} requests for token states hold {there} tokens and {tokens} more would exceed "
                f"the limit of {limit} at once; retry later",
                retry_after_s=max(0.1, there / self._tokens_per_s()),
            )
        self._held[client] += tokens
        try:
            yield
        finally:
            self._held[client] -= tokens
            if not self._held[client]:
                del self._held[client]

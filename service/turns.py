"""Whose request begins next, when many have come at once.

An event loop runs what is ready in the order in which it came. Where more comes than it can begin, what
would be refused waits behind all that was let in. Here few requests begin in each of the loop's rounds, new
ones are received and refused in between, and clients take turns. Under twice the load a refusal took 15 to
28 ms so, and 300 without (`LOG.md`, 2026-11-26); below capacity it makes no difference.

Refuses to know: what a request is, how long it waits once it has begun (engine/lanes.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

# Requests that begin in one round of the loop, in which new ones are received, too: some 250 us each.
BEGIN_AT_ONCE = 4


class Turns:
    """Among the requests of one event loop. waiting: how many wait for theirs. let_in: how many others were
    let in and have not asked for theirs yet."""

    def __init__(self, at_once: int = BEGIN_AT_ONCE):
        self._at_once = at_once
        self._begun = 0  # in this round
        self.waiting = 0
        self.let_in = 0
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # who is next, first

    @property
    def coming(self) -> int:
        """How many were let in and have not begun."""
        return self.waiting + self.let_in

    async def mine(self, client: Hashable) -> None:
        """Returns when it is this client's turn: at once, unless many are ready."""
        loop = asyncio.get_running_loop()
        if self._begun < self._at_once and not self._waiting:
            self._begun += 1
            if self._begun == 1:
                loop.call_soon(self._next, loop)
            return
        turn = loop.create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self.waiting += 1
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop's next round."""
        self._begun = 0
        while self._waiting and self._begun < self._at_once:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            turn = queue.popleft()
            self.waiting -= 1
            if queue:
                self._waiting[client] = queue  # behind all others
            if not turn.done():  # its request was not cancelled
                turn.set_result(None)
                self._begun += 1
        if self._begun:
            loop.call_soon(self._next, loop)

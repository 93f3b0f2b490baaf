"""Who is using something right now, so that it can be taken away once nobody is."""

from __future__ import annotations

import asyncio


class Holders:
    """A count of users on one event loop: `with holders:` around each use."""

    def __init__(self) -> None:
        self.count = 0
        self._free = asyncio.Event()

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if not self.count:
            self._free.set()

    async def none(self) -> None:
        """Wait until there are none."""
        while self.count:
            self._free.clear()
            await self._free.wait()

"""How far a long step is: a bar on a terminal, and elsewhere (a log, a CI) a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

Say = Callable[[str], object]

# Between two lines of one step.
EVERY_S = 10.0


class Progress:
    """One step of `total` parts. say: takes lines; nothing is shown without.

    A line comes with the first part that is done, so that each step is seen, then every EVERY_S,
    and with the last part.
    """

    def __init__(
        self,
        title: str,
        total: int,
        say: Say | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title, self._total, self._clock = title, total, clock
        terminal = say is not None and sys.stderr.isatty()
        self._say = None if terminal else say
        self._bar = tqdm(total=total, desc=title, leave=False) if terminal else None
        self._done = 0
        self._said_at: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, parts: int) -> None:
        """So many more are done."""
        self._done += parts
        if self._bar is not None:
            self._bar.update(parts)
        if self._say is None:
            return
        now = self._clock()
        if self._said_at is None or now - self._said_at >= EVERY_S or self._done >= self._total:
            self._said_at = now
            self._say(f"  {self._title}: {self._done} of {self._total}")

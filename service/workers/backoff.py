"""When a worker that died is replaced: at once, but ever later while those that come die young.

Pure: no processes, no clock of its own. What the supervisor knows of it reaches the workers, which
answer `/health/ready`, as a file beside their sockets.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# One that has lived so long has started; its death says nothing about the next one's.
STEADY_S = 5.0
# The pause after the first that died young; each further one doubles it, up to the longest.
FIRST_S, LONGEST_S = 0.5, 30.0
# So many young deaths in a row are no accident: one is tried at a time, and the service is not ready.
FAILING = 3
NOTICE = "workers_failing"


class Backoff:
    """deaths: of young workers, since one was steady last."""

    def __init__(self) -> None:
        self.deaths = 0
        self._not_before = 0.0
        self._youngest: float | None = None  # when it was started, unless it died young

    @property
    def failing(self) -> bool:
        return self.deaths >= FAILING

    def room(self, wanted: int, now: float) -> int:
        """How many of the workers that are missing may be started now."""
        if now < self._not_before:
            return 0
        return min(wanted, 1) if self.failing else wanted

    def started(self, now: float) -> None:
        """One was started."""
        self._youngest = now
        if self.failing:  # the next waits until it is known what becomes of this one
            self._not_before = now + STEADY_S

    def ended(self, lived_s: float, now: float) -> float:
        """One died that had lived so long. Returns how long its replacement waits, in seconds."""
        if lived_s >= STEADY_S:
            return max(0.0, self._not_before - now)
        self.deaths += 1
        self._youngest = None
        pause = min(LONGEST_S, FIRST_S * 2.0 ** min(self.deaths - 1, 30))
        self._not_before = now + pause
        return pause

    def look(self, now: float) -> None:
        """Forget young deaths once whoever was started last is steady."""
        if self.deaths and self._youngest is not None and now - self._youngest >= STEADY_S:
            self.deaths = 0


def put_notice(folder: Path, detail: str | None) -> None:
    """Tell workers, or with None that all is well again."""
    if detail is None:
        (folder / NOTICE).unlink(missing_ok=True)
        return
    written = folder / f".{NOTICE}"
    written.write_text(detail, encoding="utf-8")
    written.rename(folder / NOTICE)  # whole or not at all


def notice(folder: Path) -> str | None:
    """What the supervisor has to say, if anything."""
    with suppress(OSError):
        return (folder / NOTICE).read_text(encoding="utf-8")
    return None

"""`python -m tests.fuzz --minutes 30`: all parsers in turn, until the time is up or one fails."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.parsers import PARSERS

EXAMPLES = 300


def main() -> None:
    chosen = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    chosen.add_argument("--minutes", type=float, default=30)
    chosen.add_argument("parser", nargs="*", help=f"of {', '.join(PARSERS)}; all without")
    arguments = chosen.parse_args()
    logging.disable(logging.CRITICAL)
    names = arguments.parser or list(PARSERS)
    counts = dict.fromkeys(names, 0)
    failed: dict[str, str] = {}
    deadline = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < deadline and len(failed) < len(names):
        for name in names:
            if name not in failed and time.monotonic() < deadline:
                counts[name] += _some(name, failed)
    for name, count in counts.items():
        print(f"{name:20} {count:9,} {'FAILED' if name in failed else 'ok'}")
    for name, how in failed.items():
        print(f"\n{name}:\n{how}")
    sys.exit(bool(failed))


def _some(name: str, failed: dict[str, str]) -> int:
    """Some examples of one parser; how many."""
    chosen, count = PARSERS[name], 0
    with chosen.ready() as check:

        @settings(
            max_examples=EXAMPLES // chosen.price,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(chosen.inputs)
        def examples(drawn: object) -> None:
            nonlocal count
            count += 1
            check(drawn)

        try:
            examples()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a finding, of whatever kind
            failed[name] = traceback.format_exc()
    return count


if __name__ == "__main__":
    main()

"""`python -m tests.sanitize`: both builds, one after the other, each for half of the time.

With --child it is one of the processes in which a build runs.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.sanitize.build import SANITIZERS, build


def main() -> None:
    chosen = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    chosen.add_argument("--seconds", type=float, default=60)
    chosen.add_argument("--seed", type=int, default=int(time.time()) % 10**6)
    child = chosen.add_argument_group("of a child")
    child.add_argument("--child", choices=list(SANITIZERS))
    child.add_argument("--rounds", type=int, default=0, help="instead of seconds")
    child.add_argument("--artifact", type=Path)
    child.add_argument("--planted", action="store_true", help="an error that has to be found")
    given = chosen.parse_args()
    if given.child:
        _child(given)
        return
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for sanitizer in SANITIZERS:
            environment = build(sanitizer, Path(folder) / sanitizer)
            arguments = ["--seconds", str(given.seconds / 2), "--seed", str(given.seed)]
            if attack(
                sanitizer, environment, *arguments, *damageable(Path(folder), sanitizer)
            ).returncode:
                failed.append(sanitizer)
    sys.exit(f"found by: {', '.join(failed)}" if failed else 0)


def damageable(folder: Path, sanitizer: str) -> list[str]:
    """Arguments that name a small artifact, where a build's cases damage one."""
    from tests.tiny import tiny_artifact  # not in a child: it brings torch

    if sanitizer != "address":
        return []
    tiny_artifact(folder / "artifact", precision="compact", sentences_per_language=1)
    return ["--artifact", str(folder / "artifact")]


def attack(
    sanitizer: str, environment: dict[str, str], *arguments: str, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """A child in the `environment` of a build; its status is not 0 when something was found."""
    command = [sys.executable, "-m", "tests.sanitize", "--child", sanitizer, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=capture, check=False
    )


def _child(given: argparse.Namespace) -> None:
    """Say each case before it runs, so that the last that was said is the one that failed."""
    from mexma.native import _engine
    from tests.mexma.test_native import KERNELS
    from tests.sanitize.calls import bad_call, several_callers, sound
    from tests.sanitize.malformed import Files, ill_weights, raw_calls
    from tests.sanitize.planted import PLANTED

    assert Path(_engine.__file__).parent.name == given.child, _engine.__file__
    if given.planted:
        PLANTED[given.child]()
        return
    counts: Counter[str] = Counter()
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as place:
        if given.child == "thread":
            cases = [several_callers, sound]
        else:  # cheap ones more often
            damaged = Files(given.artifact, Path(place)).damaged
            cases = [sound, bad_call, *[ill_weights] * 8, *[raw_calls] * 8, *[damaged] * 4]
        ways = list(itertools.product(cases, KERNELS))
        for number in itertools.count():
            if number >= given.rounds * len(ways) if given.rounds else time.monotonic() > end:
                break
            case, kernel = ways[number % len(ways)]
            name, seed = case.__name__, [given.seed, number]
            sys.stderr.write(f"\r{given.child}: {name} on {kernel}, {seed}\033[K")
            case(np.random.default_rng(seed), kernel)
            counts[name] += 1
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    sys.stderr.write(f"\r\033[K{given.child}, seed {given.seed}: {said}; nothing found\n")


if __name__ == "__main__":
    main()

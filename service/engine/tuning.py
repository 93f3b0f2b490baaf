"""How many tokens a batch of bulk work holds: measured on this machine, with this engine.

A larger batch keeps more cores or a GPU busy, up to a point that no document knows. Interactive work
would wait behind it, so it runs only while no interactive client is about (`lanes.py`). What was found
is kept in a file, by machine and artifact, and looked up at the next start; unless others used the
machine meanwhile, or it is too slow for larger batches anyway.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mexma.encoder import Encoder
from mexma.sample import tatoeba_sample

log = logging.getLogger(__name__)

FACTORS = (1, 2, 4)
"""Of the usual batch."""
GAIN = 1.05
"""Tokens a second that a larger batch must bring, times those of a smaller one."""
LONGEST_S = 0.1
"""Time of a batch: whoever comes first after a pause waits for one."""
HOPELESS_S = 1.0
"""Time of a usual batch, by that of a small one, above which nothing is measured."""
REPEATS = 3
STEADY = 1.25
"""The slowest of three times by the fastest: above it others use the machine, too."""


class Point(NamedTuple):
    """Batches of so many tokens run at so many tokens a second."""

    tokens: int
    tokens_per_s: float


class Curve(NamedTuple):
    """steady: whether the machine was quiet enough to remember it. busy: whether others used it, which is
    not the only reason why a curve is not remembered."""

    points: list[Point]
    steady: bool
    busy: bool = False


def choose(curve: Sequence[Point]) -> Point:
    """A larger batch than the smallest only where it is better by `GAIN` than the best before it."""
    best = curve[0]
    for point in curve[1:]:
        if point.tokens_per_s >= GAIN * best.tokens_per_s:
            best = point
    return best


def measure(encoder: Encoder, usual_tokens: int, *, cold: bool = False) -> Curve:
    """The curve, from `usual_tokens` upwards; it ends where a batch takes `LONGEST_S`, or fails.

    Real sentences of about equal lengths, each size three times in turn, the best time of each: what
    else the machine does shall not count. cold: the first batch of a size takes longer than later ones, as
    on a GPU, where it loads kernels and takes memory. Takes a second; blocks. Raises what the encoder
    raises for a usual batch.
    """

    def first_time(batch: list[NDArray[np.int64]]) -> float:
        if cold:
            _time(encoder, batch)
        return _time(encoder, batch)

    sentences = encoder.tokenizer.encode([s.text for s in tatoeba_sample()[:4000:8]])
    sequences = sorted((s.ids for s in sentences), key=len)
    small = _batch(sequences, usual_tokens // 8)
    took = first_time(small)
    if usual_tokens / sum(map(len, small)) * took > HOPELESS_S:
        return Curve([Point(usual_tokens, sum(map(len, small)) / took)], steady=False)
    batches = [_batch(sequences, usual_tokens * factor) for factor in FACTORS]
    times: list[list[float]] = [[] for _ in batches]
    for repeat in range(REPEATS):
        if repeat and len(batches) == 1:
            break
        for n, batch in enumerate(batches):
            try:
                took = _time(encoder, batch) if repeat else first_time(batch)
            except Exception as error:  # a GPU's memory, mostly
                if n == 0:
                    raise
                log.warning("a batch of %d tokens fails: %s", sum(map(len, batch)), error)
                took = inf
            times[n].append(took)
            if took > LONGEST_S:
                batches = batches[: max(n, 1)]
                break
    points = [
        Point(usual_tokens * FACTORS[n], sum(map(len, batch)) / min(times[n]))
        for n, batch in enumerate(batches)
    ]
    whole = len(times[0]) == REPEATS
    steady = max(times[0]) < STEADY * min(times[0])
    return Curve(points, steady=whole and steady, busy=whole and not steady)


def _time(encoder: Encoder, batch: list[NDArray[np.int64]]) -> float:
    began = time.perf_counter()
    encoder.run(batch)
    return max(time.perf_counter() - began, 1e-9)


def _batch(sequences: list[NDArray[np.int64]], tokens: int) -> list[NDArray[np.int64]]:
    """As many of the middle lengths as `tokens` hold, some more than once."""
    middle = sequences[len(sequences) // 4 : -len(sequences) // 4]
    many = middle * (1 + tokens // sum(map(len, middle)))
    return many[: max(1, sum(total <= tokens for total in accumulate(map(len, many))))]


class Tuning:
    """What was measured before, in `file`. A file that cannot be read or written is done without."""

    def __init__(self, file: Path | None):
        self._file = file

    def bulk_batches(
        self, encoder: Encoder, usual_tokens: int, *, where: str, cold: bool = False
    ) -> Point:
        """Looked up or, the first time, measured. where: what else decides, such as device and threads.
        cold: see `measure`. Blocks for a second."""
        key = f"{encoder.fingerprint} {encoder.engine}, {where}, {machine()}, from {usual_tokens}"
        known = self._read()
        if (point := _point(known.get(key))) is not None and point.tokens >= usual_tokens:
            return point
        curve = measure(encoder, usual_tokens, cold=cold)
        chosen = choose(curve.points)
        log.info(
            "batches of bulk work have %d tokens: %s", chosen.tokens,
            ", ".join(f"{p.tokens} run at {p.tokens_per_s:.0f} tokens/s" for p in curve.points),
        )  # fmt: skip
        if curve.steady:
            self._write(known | {key: chosen._asdict()})
        elif curve.busy:
            log.info(
                "what was measured is not kept, as the machine was busy: the next start measures again"
            )
        return chosen

    def _read(self) -> dict[str, object]:
        try:
            known = json.loads(self._file.read_bytes()) if self._file else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, object]) -> None:
        if self._file is None:
            return
        new = self._file.with_suffix(f".{os.getpid()}.new")
        try:
            new.write_text(json.dumps(known, indent=1) + "\n")
            new.replace(self._file)
        except OSError as error:
            log.info("what was measured is not kept: %s", error)


def _point(kept: object) -> Point | None:
    """What was written as one."""
    try:
        point = Point(**kept) if isinstance(kept, dict) else None
        return point if point and point.tokens + point.tokens_per_s > 0 else None
    except TypeError:
        return None


def machine() -> str:
    """Processor and number of cores, and the GPUs that there are."""
    names = [f"{len(os.sched_getaffinity(0))} cores"]
    for file, field in (
        (Path("/proc/cpuinfo"), "model name"),
        *((gpu, "Model") for gpu in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))),
    ):
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith(field)][:1]
    return ", ".join(names)

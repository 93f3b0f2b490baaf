"""Errors that a build has to find, or it would find nothing."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

from mexma import native
from mexma.native import NativeEncoder
from tests.mexma.test_native import random_weights


def planted_overflow() -> None:
    """Values behind the end of what was asked for, to see that the sanitizer sees."""
    few = np.zeros(8, np.float32)
    more = (ctypes.c_char * 128).from_address(few.ctypes.data)
    binding: Any = native._engine
    handle = binding.create("portable", 32, 2, 16, 32, 1, 32, 8, 1e-5, 1, False, True, 1, 512)
    binding.set_vector(handle, -1, native.EMBEDDING_NORM, more)


def planted_race() -> None:
    """Two engines that write their vectors to one place."""
    weights, binding = random_weights(), native._engine
    engines = [
        NativeEncoder(weights, kernel="portable", threads=1, mean_pooling=True, normalise=True)
        for _ in range(2)
    ]
    ids, lengths = np.ones(400, np.int64), np.full(100, 4, np.int32)
    vectors = np.zeros((100, 64), np.float32)

    def call(engine: NativeEncoder) -> None:
        for _ in range(10):
            binding.run(engine._handle, ids, lengths, vectors, None)

    threads = [threading.Thread(target=call, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PLANTED = {"address": planted_overflow, "thread": planted_race}

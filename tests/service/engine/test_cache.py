"""The cache's bound and keys, and the line that a batch's cost is fitted with."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from service.engine.cache import OVERHEAD_BYTES, VectorCache
from service.engine.cost import BatchCost


def vector(fill: float, dim: int = 64) -> np.ndarray:
    return np.full(dim, fill, np.float32)


def test_what_was_put_is_got_and_cannot_be_changed():
    cache = VectorCache(10_000, fingerprint="f")
    key = cache.key(np.arange(5))
    assert cache.get(key) is None
    cache.put(key, vector(1))
    found = cache.get(key)
    np.testing.assert_array_equal(found, vector(1))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 2
    assert (cache.hits, cache.misses) == (1, 1)


def test_memory_is_bounded_and_the_least_recently_used_goes_first():
    each = 64 * 4 + OVERHEAD_BYTES
    cache = VectorCache(3 * each, fingerprint="f")
    keys = [cache.key(np.array([i])) for i in range(4)]
    for key in keys[:3]:
        cache.put(key, vector(0))
    cache.get(keys[0])
    cache.put(keys[3], vector(0))
    assert [cache.get(k) is not None for k in keys] == [True, False, True, True]
    assert cache.bytes == 3 * each
    cache.put(cache.key(np.array([9])), vector(0, dim=100_000))  # larger than the whole
    assert len(cache) == 0
    assert cache.bytes == 0


def test_the_overhead_is_no_less_than_what_python_takes():
    """Of one vector: key, the bytes' header, numbers and slots of an ordered dict."""
    cache = VectorCache(1 << 30, fingerprint="f")
    for i in range(1000):
        cache.put(cache.key(np.array([i])), vector(0))
    table = sys.getsizeof(cache._vectors)
    held = table + sum(sys.getsizeof(k) + sys.getsizeof(v) for k, v in cache._vectors.items())
    assert held <= cache.bytes


def test_another_encoder_has_other_keys():
    ids = np.arange(5)
    a, b = VectorCache(1, fingerprint="a"), VectorCache(1, fingerprint="b")
    assert a.key(ids) != b.key(ids)
    assert a.key(ids) == VectorCache(1, fingerprint="a").key(ids.copy())
    assert a.key(ids) != a.key(np.arange(6))


def test_a_cache_of_nothing_is_off():
    assert not VectorCache(0, fingerprint="f")


def test_cost_finds_base_and_slope():
    cost = BatchCost()
    rng = np.random.default_rng(0)
    for tokens in rng.integers(20, 1000, 200).tolist():
        cost.observe(tokens, (0.002 + 0.00005 * tokens) * rng.uniform(0.95, 1.05))
    assert cost.base_s == pytest.approx(0.002, rel=0.3)
    assert cost.s_per_token == pytest.approx(0.00005, rel=0.1)
    assert cost.tokens_within(cost.seconds(300)) == pytest.approx(300)


def test_cost_of_batches_of_one_size_is_proportional_and_follows_a_change():
    cost = BatchCost()
    for _ in range(20):
        cost.observe(100, 0.01)
    assert cost.seconds(50) == pytest.approx(0.005)
    for _ in range(300):
        cost.observe(100, 0.02)
    assert cost.seconds(100) == pytest.approx(0.02, rel=0.01)
    assert cost.tokens_per_s == pytest.approx(5000, rel=0.01)


def test_cost_stays_sane_on_noise():
    cost = BatchCost()
    rng = np.random.default_rng(0)
    for _ in range(500):
        cost.observe(int(rng.integers(1, 30)), float(rng.exponential(0.01)))
        assert cost.base_s >= 0
        assert cost.s_per_token > 0

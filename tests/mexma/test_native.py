"""The native engine against an independent encoder in numpy, on every kernel this processor has."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma import native
from mexma.native import NativeEncoder
from mexma.weights import EncoderWeights, Layer, Linear, Norm, Table
from tests.conftest import ROOT

KERNELS = [k.name for k in native.kernels() if not k.missing]
ARITHMETIC = {k.name: k.arithmetic for k in native.kernels()}
BOUND = {"fp32": 1 - 2e-6, "bf16": 0.9995, "bf16 and int8": 0.9995, "int16 and int8": 0.9995}
PLACES, VOCABULARY = 512, 300


def random_weights(
    *, hidden=64, heads=4, intermediate=96, layers=2, head=None, seed=0, sharpness=1.0
) -> EncoderWeights:
    """A small encoder. sharpness: how far attention's scores lie apart."""
    rng = np.random.default_rng(seed)

    def linear(n: int, m: int, scale: float = 1.0) -> Linear:
        matrix = rng.normal(0, scale * n**-0.5, (n, m)).astype(np.float32)
        return Linear(matrix, rng.normal(0, 0.1, m).astype(np.float32))

    def norm() -> Norm:
        return Norm(*(rng.normal(mean, 0.1, hidden).astype(np.float32) for mean in (1, 0)))

    return EncoderWeights(
        table=Table(rng.normal(size=VOCABULARY * hidden).astype(np.float32), None, 32, VOCABULARY),
        positions=rng.normal(0, 0.3, (PLACES, hidden)).astype(np.float32),
        embedding_norm=norm(),
        layers=[
            Layer(
                query=linear(hidden, hidden, sharpness),
                key=linear(hidden, hidden),
                value=linear(hidden, hidden),
                attention_out=linear(hidden, hidden),
                attention_norm=norm(),
                widen=linear(hidden, intermediate),
                narrow=linear(intermediate, hidden),
                output_norm=norm(),
            )
            for _ in range(layers)
        ],
        head=linear(hidden, head) if head else None,
        heads=heads,
        norm_eps=1e-5,
    )


def engine(weights: EncoderWeights, kernel: str, **options) -> NativeEncoder:
    options = {"threads": 2, "mean_pooling": True, "normalise": True} | options
    return NativeEncoder(weights, kernel=kernel, **options)


def run(encoder: NativeEncoder, sequences: list[np.ndarray]) -> np.ndarray:
    return encoder.run(np.concatenate(sequences), np.array([len(s) for s in sequences], np.int32))


def sequence(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([length, seed]).integers(0, VOCABULARY, length)


erf = np.vectorize(math.erf)


def reference(w: EncoderWeights, ids: np.ndarray, *, mean=True, normalise=True) -> np.ndarray:
    """One sequence's vector in double precision, straight from the definition."""

    def norm(x, n):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + w.norm_eps) * n.weight + n.bias

    def product(x, linear):
        return x @ linear.matrix.astype(np.float64) + linear.bias

    hidden = w.positions.shape[1]
    table = w.table.codes.reshape(-1, hidden).astype(np.float64)
    x = norm(table[ids] + w.positions[: len(ids)], w.embedding_norm)
    for layer in w.layers:
        q, k, v = (
            product(x, p).reshape(len(ids), w.heads, -1).swapaxes(0, 1)
            for p in (layer.query, layer.key, layer.value)
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (p / p.sum(-1, keepdims=True)) @ v
        mixed = mixed.swapaxes(0, 1).reshape(len(ids), hidden)
        x = norm(x + product(mixed, layer.attention_out), layer.attention_norm)
        wide = product(x, layer.widen)
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(x + product(wide, layer.narrow), layer.output_norm)
    pooled = x.mean(0) if mean else x[0]
    if w.head is not None:
        pooled = np.tanh(product(pooled, w.head))
    return pooled / np.linalg.norm(pooled) if normalise else pooled


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_it_was_built():
    assert native.NOT_BUILT == ""
    assert "portable" in KERNELS
    assert [k.name for k in native.kernels()][-1] == "portable"


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_is_the_references(kernel):
    weights = random_weights()
    encoder = engine(weights, kernel)
    lengths = [*range(1, 36), 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 511, 512]
    sequences = [sequence(n) for n in lengths]
    for ids, vector in zip(sequences, run(encoder, sequences), strict=True):
        assert cosine(vector, reference(weights, ids)) > BOUND[ARITHMETIC[kernel]], len(ids)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


SHAPES = [
    {"hidden": 96, "heads": 3, "intermediate": 160, "layers": 1},
    {"hidden": 128, "heads": 2, "intermediate": 512, "layers": 3},
    {"hidden": 64, "heads": 8, "intermediate": 40, "layers": 2},
    {"hidden": 192, "heads": 4, "intermediate": 224, "layers": 1, "head": 48},
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_the_references(kernel, shape):
    weights = random_weights(**shape)
    for options in ({"mean": True, "normalise": True}, {"mean": False, "normalise": False}):
        encoder = engine(
            weights, kernel, mean_pooling=options["mean"], normalise=options["normalise"]
        )
        for length in (1, 20, 70):
            (vector,) = run(encoder, [sequence(length)])
            expected = reference(weights, sequence(length), **options)
            assert vector.shape == (shape.get("head", shape["hidden"]),)
            assert cosine(vector, expected) > BOUND[ARITHMETIC[kernel]]
            size = np.linalg.norm(vector) / np.linalg.norm(expected)
            assert size == pytest.approx(1, abs=1e-5 if ARITHMETIC[kernel] == "fp32" else 0.01)


@cache
def shared(kernel: str, threads: int, piece_tokens: int, mean: bool) -> NativeEncoder:
    options = {"threads": threads, "piece_tokens": piece_tokens, "mean_pooling": mean}
    return engine(random_weights(), kernel, **options)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 512)), min_size=1, max_size=24),
    threads=st.sampled_from([1, 2, 3]),
    piece_tokens=st.sampled_from([1, 64, 512]),
    mean=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_vector_is_the_same_bits_in_any_batch(kernel, lengths, threads, piece_tokens, mean, seed):
    """Whatever it is batched with, cut into which pieces, on how many threads."""
    sequences = [sequence(n, seed) for n in lengths]
    together = run(shared(kernel, threads, piece_tokens, mean), sequences)
    alone = np.concatenate([run(shared(kernel, 1, 512, mean), [s]) for s in sequences])
    assert np.array_equal(together, alone)


RACES = """
import sys
import numpy as np
from tests.mexma.test_native import engine, random_weights, run, sequence

weights, sequences = random_weights(), [sequence(n) for n in (512, *[1] * 7)]
alone = engine(weights, sys.argv[1], threads=1)
expected = np.concatenate([run(alone, [s]) for s in sequences])
for _ in range(100):
    found = run(engine(weights, sys.argv[1], threads=8, piece_tokens=512), sequences)
    assert np.array_equal(found, expected)
"""


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_thread_may_take_a_piece_where_there_are_fewer_pieces_than_threads(kernel):
    """One long text among short ones: two pieces for eight threads, whichever come first. In a process
    of its own, since what was wrong here was the memory of those that had none."""
    command = [sys.executable, "-c", RACES, kernel]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("kernel", KERNELS)
def test_token_states_are_packed_and_pool_to_the_vector(kernel):
    encoder = engine(random_weights(), kernel)
    sequences = [sequence(n) for n in (3, 40, 1, 17)]
    lengths = np.array([len(s) for s in sequences], np.int32)
    states = encoder.token_states(np.concatenate(sequences), lengths)
    assert states.shape == (61, 64)
    ends = np.cumsum(lengths)
    for vector, end, length in zip(run(encoder, sequences), ends, lengths, strict=True):
        assert cosine(states[end - length : end].mean(0), vector) > 1 - 1e-6


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_first_tokens_vector_is_its_state(kernel, threads):
    """Though the last layer is computed for first tokens alone where nobody wants the others' states."""
    encoder = engine(
        random_weights(layers=3), kernel, mean_pooling=False, normalise=False, threads=threads
    )
    for lengths in ([3, 40, 1, 1, 17, 90], [512], [1], [1] * 40):
        sequences = [sequence(n, seed) for seed, n in enumerate(lengths)]
        counts = np.array(lengths, np.int32)
        states = encoder.token_states(np.concatenate(sequences), counts)
        first = states[np.cumsum(counts) - counts]
        np.testing.assert_array_equal(run(encoder, sequences), first)


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_that_lie_far_apart(kernel):
    """Attention so sharp that some rows' scores lie hundreds below their neighbours'."""
    weights = random_weights(layers=1, sharpness=1.0)
    layer = weights.layers[0]
    # One head's scores are shifted by a number that depends on the query alone.
    shifted = replace(layer, key=Linear(layer.key.matrix, layer.key.bias + np.float32(60)))
    weights = replace(weights, layers=[shifted])
    encoder = engine(weights, kernel)
    for length in (5, 16, 33, 200):
        (vector,) = run(encoder, [sequence(length)])
        bound = 1 - 1e-5 if ARITHMETIC[kernel] == "fp32" else 0.999
        assert cosine(vector, reference(weights, sequence(length))) > bound


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_stays_where_it_is(kernel, value):
    weights = random_weights()
    codes = weights.table.codes.copy()
    codes[7 * 64 + 3] = value  # of token 7
    encoder = engine(replace(weights, table=replace(weights.table, codes=codes)), kernel)
    sound = [np.where(sequence(n) == 7, 8, sequence(n)) for n in (1, 16, 20, 33)]
    ill = [np.array([7]), np.array([1, 2, 7, 4]), np.r_[sound[3], 7]]
    vectors = run(encoder, [sound[0], ill[0], sound[1], ill[1], sound[2], ill[2], sound[3]])
    assert not np.isfinite(vectors[1::2]).any(1).any()
    assert np.array_equal(vectors[::2], run(engine(weights, kernel), sound))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gelu_of_what_is_very_negative_is_nothing(kernel):
    weights = random_weights(layers=1)
    (layer,) = weights.layers
    bias = layer.widen.bias.copy()
    bias[3] = -1e5
    layer = replace(layer, widen=replace(layer.widen, bias=bias))
    weights = replace(weights, layers=[layer])
    (vector,) = run(engine(weights, kernel), [sequence(9)])
    assert cosine(vector, reference(weights, sequence(9))) > 0.99


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_that_are_not_finite_or_hardly_there(kernel):
    weights = random_weights(layers=1)
    (layer,) = weights.layers
    for part in ("query", "value", "attention_out", "widen", "narrow"):
        linear = getattr(layer, part)
        for value in (np.nan, np.inf, -np.inf):
            matrix = linear.matrix.copy()
            matrix[3] = value
            broken = replace(layer, **{part: replace(linear, matrix=matrix)})
            (vector,) = run(engine(replace(weights, layers=[broken]), kernel), [sequence(9)])
            assert not np.isfinite(vector).any(), (part, value)
        tiny = linear.matrix * np.float32(1e-43)  # a few of the smallest steps there are
        small = replace(layer, **{part: replace(linear, matrix=tiny)})
        none = replace(layer, **{part: replace(linear, matrix=np.zeros_like(tiny))})
        vectors = [
            run(engine(replace(weights, layers=[one]), kernel), [sequence(9)])
            for one in (small, none)
        ]
        np.testing.assert_allclose(*vectors, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_of_eight_bits_are_what_they_were(kernel):
    """As compact artifacts hold them: codes, and a scale for 32 inputs of an output, whatever the largest
    code. What they are multiplied by is made of numbers that every kernel has: only weights can be off."""
    rng = np.random.default_rng(0)

    def coded(linear: Linear) -> Linear:
        rows, columns = linear.matrix.shape
        most = rng.integers(64, 128, (rows // 32, 1, columns))
        codes = np.round(rng.uniform(-1, 1, (rows // 32, 32, columns)) * most)
        codes[:, 5:6] = most * rng.choice([-1, 1], most.shape)
        scales = rng.uniform(1e-3, 4e-3, most.shape).astype(np.float16).astype(np.float32)
        codes[0, :, 0] = 0
        return replace(linear, matrix=(codes.astype(np.float32) * scales).reshape(rows, columns))

    def constant(linear: Linear) -> Linear:
        matrix = np.zeros_like(linear.matrix)
        return Linear(
            matrix,
            np.repeat(rng.choice([-0.75, 0.5, 2], matrix.shape[1] // 32), 32).astype(np.float32),
        )

    weights = random_weights(layers=1)
    (layer,) = weights.layers
    layer = replace(
        layer, value=constant(layer.value), attention_out=coded(layer.attention_out),
        widen=constant(layer.widen), narrow=coded(layer.narrow),
    )  # fmt: skip
    weights = replace(weights, layers=[layer])
    encoder = engine(weights, kernel)
    for length in (1, 9, 40):
        (vector,) = run(encoder, [sequence(length)])
        expected = reference(weights, sequence(length))
        bound = 2e-3 if ARITHMETIC[kernel] == "bf16" else 1e-4
        np.testing.assert_allclose(vector, expected, rtol=0, atol=bound)


def test_a_table_in_few_bits():
    rng = np.random.default_rng(0)
    weights = random_weights()
    for bits in (4, 8):
        codes = rng.integers(0, 2**bits, (VOCABULARY, 64)).astype(np.uint8)
        scales = rng.normal(0, 0.2, (VOCABULARY, 2)).astype(np.float16)
        scales[0] = [6e-8, -1e-6]  # denormal
        packed = codes if bits == 8 else codes[:, ::2] + codes[:, 1::2] * np.uint8(16)
        wide = (codes.astype(np.float32) - 2 ** (bits - 1)) * np.repeat(scales, 32, 1)
        table = Table(packed.reshape(-1), scales.reshape(-1), bits, VOCABULARY)
        plain = replace(weights, table=Table(wide.reshape(-1), None, 32, VOCABULARY))
        sequences = [np.array([0]), sequence(20)]
        for kernel in KERNELS:
            assert np.array_equal(
                run(engine(replace(weights, table=table), kernel), sequences),
                run(engine(plain, kernel), sequences),
            )


def test_no_sequences_no_vectors():
    encoder = engine(random_weights(), KERNELS[0])
    assert encoder.run(np.empty(0, np.int64), np.empty(0, np.int32)).shape == (0, 64)


def test_what_the_model_does_not_have_is_refused():
    encoder = engine(random_weights(), KERNELS[0])
    with pytest.raises(IndexError, match="sequence 1 has 513 tokens; this model takes 1 to 512"):
        run(encoder, [sequence(3), sequence(513)])
    with pytest.raises(IndexError, match="sequence 1 has 0 tokens"):
        run(encoder, [sequence(3), np.empty(0, np.int64)])
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IndexError, match=f"token id {wrong} at position 4"):
            run(encoder, [sequence(3), np.array([1, wrong])])
    with pytest.raises(ValueError, match="expected a buffer of 24 bytes"):
        encoder.run(np.zeros(4, np.int64), np.array([3], np.int32))
    assert np.isfinite(run(encoder, [sequence(3)])).all()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="hidden size in 32s, found 48"):
        engine(random_weights(hidden=48), KERNELS[0])
    with pytest.raises(ValueError, match="no kernel is called abacus"):
        engine(random_weights(), "abacus")


def test_parts_that_are_not_of_each_others_shapes():
    """Read as if they were, they end in memory that is none of theirs."""
    weights = random_weights(head=48)
    (layer, other), norm, head = weights.layers, weights.embedding_norm, weights.head
    turned = Linear(np.ascontiguousarray(layer.widen.matrix.T), np.zeros(64, np.float32))
    one = np.ones(1, np.float32)
    for wrong, said in [
        ({"layers": [replace(layer, widen=turned), other]}, "expected 64 by 96, got 96 by 64"),
        (
            {"layers": [layer, replace(other, output_norm=Norm(one, one))]},
            "64 values of 4 bytes, got 4",
        ),
        ({"embedding_norm": Norm(norm.weight, norm.bias[1:])}, "64 values of 4 bytes, got 252"),
        ({"head": replace(head, matrix=head.matrix[1:])}, "3072 values of 4 bytes, got 12096"),
        (
            {"positions": weights.positions.reshape(-1)},
            r"positions \[places, hidden\], got \(32768,\)",
        ),
        ({"layers": []}, "0 layers of 4 heads"),
        ({"heads": 0}, "2 layers of 0 heads"),
        # As many rows as make the bytes of a row times them wrap around to 0.
        ({"table": Table(np.empty(0, np.float32), None, 32, 2**56)}, "table: sizes do not match"),
    ]:
        with pytest.raises(ValueError, match=said):
            engine(replace(weights, **wrong), "portable")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads: expected 1 to 4096, got 0"),
        ({"threads": -1}, "threads: expected 1 to 4096, got -1"),
        ({"piece_tokens": 0}, "piece_tokens: expected 1 to 1048576, got 0"),
        ({"piece_tokens": 2**31 - 1}, "piece_tokens: expected 1 to 1048576, got 2147483647"),
    ],
)
def test_numbers_that_no_engine_has(options, said):
    with pytest.raises(ValueError, match=said):
        engine(random_weights(), "portable", **options)


def test_more_tokens_than_can_be_counted():
    encoder = engine(random_weights(head=1, layers=1), "portable")
    lengths = np.full(2**22, 512, np.int32)
    with pytest.raises(IndexError, match="lengths add up to 2147483648 tokens"):
        encoder.run(np.empty(0, np.int64), lengths)
    with pytest.raises(IndexError, match="lengths add up to -5 tokens"):
        encoder.run(np.empty(0, np.int64), np.array([-5], np.int32))


def test_a_model_that_lacks_weights_computes_nothing():
    binding = native._engine
    handle = binding.create("portable", 32, 2, 16, 32, 1, 32, 8, 1e-5, 1, False, True, 1, 512)
    binding.set_table(handle, 0, np.zeros((4, 32), np.float32), b"", 4)
    one, vectors = np.ones(1, np.int32), np.empty((1, 32), np.float32)
    for layer in (-1, 1):
        with pytest.raises(ValueError, match=f"there is no layer {layer}"):
            binding.set_vector(handle, layer, native.ATTENTION_NORM, np.ones(32, np.float32))
        matrix = np.zeros((32, 32), np.float32)
        with pytest.raises(ValueError, match=f"there is no layer {layer}"):
            binding.set_matrix(handle, layer, native.WIDEN, matrix, 32, 32, matrix[0])
    with pytest.raises(ValueError, match="the model lacks weights"):
        binding.run(handle, np.zeros(1, np.int64), one, vectors, None)


TOO_MANY = """
import resource
from tests.mexma.test_native import engine, random_weights, run, sequence

weights = random_weights()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try:
    engine(weights, "portable", threads=1000)
except RuntimeError as error:
    assert "the system gives no more threads" in str(error), error
assert run(engine(weights, "portable", threads=2), [sequence(5)]).shape == (1, 64)
print("went on")
"""


def test_threads_that_the_system_does_not_give():
    """A container's limit, for one: it is said, and ends no process."""
    command = [sys.executable, "-c", TOO_MANY]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout == "went on\n", (done.returncode, done.stderr)


CHANGING = """
import threading
import numpy as np
from tests.mexma.test_native import engine, random_weights, sequence

# What changes is of the last piece, long after it was checked.
encoder = engine(random_weights(), "portable", threads=1, piece_tokens=64)
ids, lengths, over = sequence(2000), np.full(500, 4, np.int32), threading.Event()
right, expected = ids[-1], encoder.run(ids, lengths)

def change():
    while not over.is_set():
        ids[-1] = 2**40
        ids[-1] = right  # last: here the interpreter lets others run
        lengths[-2:] = 1, 7
        lengths[-2:] = 4

threading.Thread(target=change, daemon=True).start()
for _ in range(20):
    try:
        found = encoder.run(ids, lengths)
    except IndexError as error:
        assert f"token id {2**40} at position 1999" in str(error), error
    else:
        assert np.array_equal(found[:-2], expected[:-2])
over.set()
print("went on")
"""


def test_ids_that_change_while_they_are_computed():
    """What was checked is what is looked up, whoever writes there meanwhile."""
    command = [sys.executable, "-c", CHANGING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", (done.returncode, done.stderr)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_several_callers_at_once(kernel, threads):
    """One that is alone has all threads, two have half of them each, others wait."""
    encoder = engine(random_weights(), kernel, threads=threads)
    batches = [[sequence(n, caller) for n in (5, 30, 64, 17)] * 4 for caller in range(6)]
    expected = [run(encoder, batch) for batch in batches]
    wrong: list[int] = []

    def call(caller: int) -> None:
        for _ in range(10):
            if not np.array_equal(run(encoder, batches[caller]), expected[caller]):
                wrong.append(caller)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []

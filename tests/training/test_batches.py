"""The stream of pairs: a pure function, the same for any number of ranks, fair to languages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from mexma.errors import EmptyText
from mexma.text import TextTokenizer
from training.alike import find_alike
from training.batches import Batches, Order
from training.corpus import Corpus, open_corpus
from training.errors import DataError, RunStateError
from training.loop import open_backbone
from training.masking import Vocabulary
from training.ranks import Ranks
from training.recipe import override
from training.recipes import tiny_cpu

NOTHING = "a text without tokens"


def corpus_of(counts: dict[str, int]) -> Corpus:
    rows = [(f"{lang} {i}", f"en {i}", lang) for lang, n in counts.items() for i in range(n)]
    return Corpus.of(
        pa.table(dict(zip(("src", "trg", "lang"), zip(*rows, strict=True), strict=True)))
    )


def batches(*settings: str, corpus: Corpus | None = None, rank=0, world=1) -> Batches:
    r = override(tiny_cpu(), settings)
    start = open_backbone(r)
    vocabulary = Vocabulary.of(start.tokenizer_json, start.encoder.config.vocabulary)
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=start.max_tokens)
    return Batches(corpus or open_corpus(r).train, tokenizer, vocabulary, r, rank=rank, world=world)


def ids_of(b: Batches, step: int) -> list[list[int]]:
    return [x.sample_ids for x in b.step(step).batches]


def test_an_epoch_has_every_pair_once_and_the_next_another_order():
    order = Order(corpus_of({"de": 30, "fr": 12}), seed=1, temperature=1.0)
    first, second = order.take(0, 42), order.take(42, 42)
    assert sorted(first) == sorted(second) == list(range(42))
    assert not np.array_equal(first, second)
    assert np.array_equal(order.take(40, 4), np.concatenate([first[40:], second[:2]]))


def test_temperature_shares_places_and_repeats_only_after_all_were_seen():
    corpus = corpus_of({"big": 900, "small": 100})
    order = Order(corpus, seed=1, temperature=2.0)
    assert order.places.tolist() == [750, 250]  # sqrt(900) : sqrt(100)
    taken = order.take(0, order.epoch_pairs)
    seen = Counter(int(i) for i in taken if corpus.languages[i] == 1)
    assert set(seen.values()) == {2, 3}  # 250 places for 100 pairs
    two = order.take(0, 2 * order.epoch_pairs)
    seen = Counter(int(i) for i in two if corpus.languages[i] == 1)
    assert set(seen.values()) == {5}
    assert len(seen) == 100


def test_a_language_with_one_sentence():
    order = Order(corpus_of({"de": 200, "one": 1}), seed=1, temperature=5.0)
    assert order.places[1] >= 1
    assert 200 in order.take(0, order.epoch_pairs)


def test_any_step_can_be_asked_for_by_itself():
    running = [ids_of(b, s) for b in [batches()] for s in range(12)]
    asked = batches()
    assert [ids_of(asked, s) for s in (11, 3, 7)] == [running[s] for s in (11, 3, 7)]
    assert [[b.sample_ids for b in read.batches] for read in batches().read(5)] == [
        ids_of(asked, s) for s in range(5, asked.steps)
    ]
    assert ids_of(batches("seed=2"), 3) != running[3]


def test_two_ranks_see_what_one_sees():
    one = batches()
    two = [batches(rank=r, world=2) for r in range(2)]
    for step in (0, 5):
        whole = one.step(step)
        parts = [b.step(step) for b in two]
        assert all(p.chosen == whole.chosen and p.pairs == whole.pairs for p in parts)
        for place, batch in enumerate(whole.batches):
            shares = [p.batches[place] for p in parts]
            assert sorted(batch.sample_ids) == sorted(i for s in shares for i in s.sample_ids)
            for r, share in enumerate(shares):
                assert share.sample_ids == batch.sample_ids[r::2]
                n = len(share.sample_ids)
                for row in range(2 * n):  # and each pair's masks are the same
                    theirs = share.masked.ids[share.masked.rows == row]
                    at = (row % n) * 2 + r + (row // n) * 2 * n
                    assert torch.equal(theirs, batch.masked.ids[batch.masked.rows == at])


def grouped(corpus: Corpus, topics: np.ndarray, out, *settings: str, rank=0, world=1) -> Batches:
    """Batches of groups of 4, of pairs whose English sentences are about so many topics."""
    made = batches("alike=4", *settings, corpus=corpus, rank=rank, world=world)
    centres = np.random.default_rng(5).standard_normal((topics.max() + 1, 32))
    names = dict(zip(corpus.targets.to_pylist(), topics, strict=True))

    def embed(texts: list[str]) -> np.ndarray:
        rows = np.stack([centres[names[t]] for t in texts]) + 0.01 * len(texts) / 1e6
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    made.alike = find_alike(
        out, corpus, made.read_pairs, embed, Ranks(0, 1, torch.device("cpu")), start="w", quiet=True
    )
    return made


def test_a_batch_takes_groups_of_sentences_that_are_alike(tmp_path):
    corpus = corpus_of({"de": 128})
    topics = np.random.default_rng(1).permutation(128) % 32  # four pairs of each
    settings = ("batch_pairs=16", "bucket_batches=8", "accumulate=1", "pairs=128")
    made = grouped(corpus, topics, tmp_path, *settings)
    seen = []
    for step in range(8):
        [ids] = ids_of(made, step)
        seen += ids
        assert sorted(Counter(topics[ids]).values()) == [4, 4, 4, 4], "whole groups"
    assert sorted(seen) == list(range(128)), "each pair once"
    plain = batches(*settings, corpus=corpus)
    assert max(Counter(topics[ids_of(plain, 0)[0]]).values()) < 4
    # Again, from what lies beside the run: nobody is asked for vectors.
    again = grouped(corpus, topics, tmp_path, *settings)
    assert [ids_of(again, s) for s in range(8)] == [ids_of(made, s) for s in range(8)]
    two = [grouped(corpus, topics, tmp_path, *settings, rank=r, world=2) for r in (0, 1)]
    for step in range(8):
        [whole], parts = ids_of(made, step), [ids_of(b, step)[0] for b in two]
        assert sorted(whole) == sorted(parts[0] + parts[1])
    with pytest.raises(RunStateError, match=r"alike\.npz: is of pairs"):
        grouped(corpus_of({"fr": 128}), topics, tmp_path, *settings)


def test_batches_hold_texts_of_like_length():
    b = batches("bucket_batches=32")
    spans = [x.clean.lengths.float().std() for s in range(10) for x in b.step(s).batches]
    mixed = batches("bucket_batches=1")
    mixed_spans = [x.clean.lengths.float().std() for s in range(10) for x in mixed.step(s).batches]
    assert sum(spans) < 0.6 * sum(mixed_spans)


def test_the_last_step_may_have_fewer_batches():
    b = batches("accumulate=4", "pairs=96")  # 6 batches of 16
    assert b.steps == 2
    assert [len(b.step(s).batches) for s in range(2)] == [4, 2]
    assert b.step(1).pairs == 32


def test_a_text_without_a_known_token_is_replaced_and_counted():
    corpus = corpus_of({"de": 40})
    texts = corpus.sources.to_pylist()
    texts[7] = NOTHING
    broken = Corpus(
        pa.array(texts, pa.large_string()), corpus.targets, corpus.languages, corpus.names
    )
    b = batches("pairs=640", corpus=broken)
    encode = b._tokenizer.encode

    def knows_nothing_of_it(texts):
        if NOTHING in texts:
            raise EmptyText("item holds no token", item=texts.index(NOTHING))
        return encode(texts)

    b._tokenizer.encode = knows_nothing_of_it
    seen = [i for s in range(b.steps) for ids in ids_of(b, s) for i in ids]
    assert 7 not in seen
    assert b.unusable == {7}


def test_ranks_must_divide_a_batch():
    with pytest.raises(DataError, match="batch_pairs must be a multiple of the 3 ranks, got 16"):
        batches(world=3)

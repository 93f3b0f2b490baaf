"""The pairs in memory: what to train on, what to judge by, and what was left out and why.

Texts stay in Arrow arrays. The number of a pair in `Corpus` is its sample id: with the same
settings and files it is the same pair, on every rank and after every restart, and `fingerprint`
tells when it is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.chance import number, permutation
from training.errors import DataError
from training.recipe import Recipe
from training.sources import Source, read_sources


@dataclass(frozen=True)
class Corpus:
    """n pairs.

    sources, targets: Arrow strings `[n]`: texts, and their English translations. languages:
    int32 `[n]`, index into `names`, of the texts. names: language tags, sorted.
    """

    sources: pa.LargeStringArray
    targets: pa.LargeStringArray
    languages: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.languages)

    @classmethod
    def of(cls, table: pa.Table) -> Corpus:
        """From a table with the string columns src, trg and lang."""
        names = tuple(sorted(pc.unique(table["lang"]).to_pylist()))
        codes = pc.index_in(table["lang"], value_set=pa.array(names, pa.large_string()))
        sources, targets = _one_array(table["src"]), _one_array(table["trg"])
        return cls(sources, targets, codes.to_numpy().astype(np.int32), names)

    def pairs(self, ids: NDArray[np.int64]) -> tuple[list[str], list[str]]:
        """Texts and translations of some pairs."""
        index = pa.array(ids)
        return self.sources.take(index).to_pylist(), self.targets.take(index).to_pylist()

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a text, a tag or the order changes."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        digest.update(self.languages.tobytes())
        for array in (self.sources, self.targets):
            for buffer in array.buffers()[1:]:
                digest.update(buffer)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """What `open_corpus` returns.

    train: pairs to train on. held_out: name of a held-out part ("sentences" for the held-out
    fraction, else the source) -> its pairs. dropped: reason -> how many pairs were left out.
    """

    train: Corpus
    held_out: dict[str, Corpus]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def judges(self) -> str:
        """A fingerprint of all that is held out, whatever its parts are called."""
        parts = "".join(part.fingerprint for part in self.held_out.values())
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def open_corpus(recipe: Recipe) -> Split:
    """Read, clean and divide a recipe's data. Raises DataError where too little is left."""
    if not recipe.data:
        raise DataError("the recipe names no data: give files with data=FILE,FILE")
    sources = read_sources(recipe.data, recipe.columns)
    judges = read_sources(recipe.hold_out, recipe.columns)
    dropped: dict[str, int] = {}
    for source in [*sources, *judges]:
        for reason, count in source.broken.items():
            what = f"{source.name}: {reason}"
            dropped[what] = dropped.get(what, 0) + count

    tables = [s.table for s in sources]
    if recipe.most_per_source:
        tables = [_capped(t, recipe.most_per_source, recipe.seed) for t in tables]
        left_out = sum(len(s.table) for s in sources) - sum(len(t) for t in tables)
        dropped[f"more than {recipe.most_per_source} of a language in a source"] = left_out
    table = pa.concat_tables(tables).combine_chunks()
    banned = pa.concat_arrays([_bare(a) for a in _forbidden(recipe, judges)] or [_bare(_none())])
    held_out = {s.name: Corpus.of(s.table) for s in judges if len(s.table)}
    if len(banned):
        clean = _without(table, banned)
        dropped["seen in held-out or forbidden sentences"] = len(table) - len(clean)
        table = clean
    if recipe.hold_out_fraction:
        kept_back = _chosen_sentences(table["trg"], recipe.seed, recipe.hold_out_fraction)
        rest = table.filter(pa.array(~kept_back))
        if kept_back.any():
            kept = table.filter(pa.array(kept_back))
            held_out["sentences"] = Corpus.of(kept)
            clean = _without(rest, _bare(_one_array(kept["trg"])), ("trg",))
            dropped["a held-out sentence but for case and punctuation"] = len(rest) - len(clean)
            rest = clean
        table = rest
    if len(table) < recipe.batch_pairs:
        raise DataError(
            f"a batch has {recipe.batch_pairs} pairs (batch_pairs=), but only {len(table)} are left to train "
            f"on from {', '.join(recipe.data)}"
            + "".join(f"; {n} rows dropped: {why}" for why, n in dropped.items() if n)
        )
    return Split(Corpus.of(table), held_out, {k: n for k, n in dropped.items() if n})


def _none() -> pa.LargeStringArray:
    return pa.array([], pa.large_string())


def _one_array(column: pa.ChunkedArray) -> pa.LargeStringArray:
    joined = column.cast(pa.large_string()).combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        return pa.concat_arrays(joined.chunks) if joined.num_chunks else _none()
    return joined


def _bare(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Case, punctuation, spaces and Unicode's variants taken away: what decontamination compares."""
    folded = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.replace_substring_regex(folded, r"[\pP\pS\pZ\s]+", "")


def _forbidden(recipe: Recipe, judges: list[Source]) -> list[pa.LargeStringArray]:
    """Raises DataError for a row that cannot be read: it would forbid nothing."""
    arrays = []
    for name in recipe.decontaminate:
        file = Path(name)
        if file.suffix.lower() != ".txt":
            forbidding = read_sources([name], recipe.columns, every_split=True)
            for source in forbidding:
                if source.broken:
                    reasons = "; ".join(f"{n} rows: {why}" for why, n in source.broken.items())
                    raise DataError(
                        f"{name}: not all of {source.name} can be read, and what is not would "
                        f"forbid nothing ({reasons})"
                    )
            judges = [*judges, *forbidding]
            continue
        try:
            # Only line feeds end a sentence: str.splitlines would also cut at U+2028 within one.
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: expected a file of sentences in UTF-8 ({error})") from None
        arrays.append(pa.array([line for line in lines if line.strip()], pa.large_string()))
    for judge in judges:
        arrays += [_one_array(judge.table[column]) for column in ("src", "trg")]
    return arrays


def _without(
    table: pa.Table, banned: pa.LargeStringArray, columns: Sequence[str] = ("src", "trg")
) -> pa.Table:
    hit = np.zeros(len(table), bool)
    for column in columns:
        bare = _bare(_one_array(table[column]))
        found = pc.is_in(bare, value_set=banned).to_numpy(zero_copy_only=False)
        # A text of symbols only is bare of everything, and equal to all others of its kind.
        hit |= found & (pc.utf8_length(bare).to_numpy(zero_copy_only=False) > 0)
    return table.filter(pa.array(~hit))


def _capped(table: pa.Table, most: int, seed: int) -> pa.Table:
    """At most so many rows of each language, in the order they had."""
    languages = Corpus.of(table).languages
    order = permutation(len(table), seed, number("most per source"))
    order = order[np.argsort(languages[order], kind="stable")]  # by language, shuffled within
    counts = np.bincount(languages)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return table.take(pa.array(np.sort(order[place < most])))


def _chosen_sentences(texts: pa.ChunkedArray, seed: int, fraction: float) -> NDArray[np.bool_]:
    """A pure function of seed and sentence: equal sentences share their fate."""
    encoded = _one_array(texts).dictionary_encode()
    words = encoded.dictionary.to_pylist()
    chosen = np.array([number(f"{seed} {w}") < fraction * 2**63 for w in words], bool)
    fate: NDArray[np.bool_] = chosen[encoded.indices.to_numpy(zero_copy_only=False)]
    return fate

"""Pairs of sentences from Parquet or TSV files, per language.

Columns `lang`, `src`, `trg`, and optionally `alignment` (gold word links in Pharaoh format).
A row with one side empty is a sentence without a translation: bitext mining needs such rows,
all other metrics leave them out.

A broken row stops the reading. Training can do with a row less; a test set that lost rows
unnoticed gives numbers that compare with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mexma.errors import InputError

COLUMNS = ("lang", "src", "trg")
ALIGNMENT = "alignment"

Row = tuple[str, str, str, str | None]


@dataclass
class Pairs:
    """The sentences of one language, or of one language pair.

    source, target: translations of each other, in the same order. alignment: gold word links
    of each pair, None where the row has none. source_only, target_only: sentences that came
    without a translation.
    """

    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    alignment: list[str | None] = field(default_factory=list)
    source_only: list[str] = field(default_factory=list)
    target_only: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    def texts(self) -> Iterator[str]:
        """Everything in it."""
        for side in (self.source, self.target, self.source_only, self.target_only):
            yield from side

    def sample(self, limit: int, *, seed: int) -> Pairs:
        """At most `limit` pairs, and as many sentences of each side alone, in file order."""

        def chosen(n: int) -> list[int]:
            drawn = np.random.default_rng(seed).permutation(n)[:limit]
            return sorted(int(i) for i in drawn)

        rows = chosen(len(self))
        return Pairs(
            source=[self.source[i] for i in rows],
            target=[self.target[i] for i in rows],
            alignment=[self.alignment[i] for i in rows],
            source_only=[self.source_only[i] for i in chosen(len(self.source_only))],
            target_only=[self.target_only[i] for i in chosen(len(self.target_only))],
        )


def read_pairs(
    files: Iterable[Path],
    *,
    languages: Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Pairs]:
    """Language -> its pairs from all `files`, languages in alphabetical order.

    languages: only these, None for all. limit: at most so many pairs of each, drawn with
    `seed`. Raises InputError for a file that is no Parquet or TSV, lacks a column, has a
    broken row or is empty, and for a language in `languages` that no file has.
    """
    wanted = None if languages is None else set(languages)
    found: dict[str, Pairs] = {}
    names = [str(file) for file in files]
    for file in map(Path, names):
        for lang, source, target, alignment in _rows(file):
            if wanted is not None and lang not in wanted:
                continue
            pairs = found.setdefault(lang, Pairs())
            if source and target:
                pairs.source.append(source)
                pairs.target.append(target)
                pairs.alignment.append(alignment)
            elif source:
                pairs.source_only.append(source)
            elif target:
                pairs.target_only.append(target)
    if missing := sorted((wanted or set()) - set(found)):
        raise InputError(f"{', '.join(names)}: expected rows of language {missing[0]}, found none")
    if not any(len(pairs) for pairs in found.values()):
        raise InputError(f"{', '.join(names)}: expected pairs with both sides, found none")
    if limit is not None:
        found = {lang: pairs.sample(limit, seed=seed) for lang, pairs in found.items()}
    return dict(sorted(found.items()))


def _rows(file: Path) -> Iterator[Row]:
    if not file.is_file():
        raise InputError(f"{file}: expected a file of pairs, found none")
    kinds = {".parquet": _parquet, ".tsv": _tsv}
    if file.suffix not in kinds:
        raise InputError(f"{file}: expected a .parquet or .tsv file, found {file.suffix!r}")
    for number, (lang, source, target, alignment) in enumerate(kinds[file.suffix](file)):
        if not lang:
            raise InputError(f"{file}: row {number} (counted from 0) has no language")
        yield lang, source, target, alignment


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415  40 MB that a TSV file does not need
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        present = pq.read_schema(file).names
        _check_columns(file, present)
        wanted = [*COLUMNS, *([ALIGNMENT] if ALIGNMENT in present else [])]
        table = pq.read_table(file, columns=wanted)
    except pa.ArrowException as error:
        raise InputError(f"{file}: expected a Parquet file, but {error}") from None
    for name in wanted:
        if not (pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type)):
            raise InputError(f"{file}: column {name} must hold text, found {table[name].type}")
    for batch in table.to_batches(max_chunksize=10_000):
        columns = {name: batch.column(name).to_pylist() for name in wanted}
        links = columns.get(ALIGNMENT, [None] * len(batch))
        for lang, source, target, link in zip(*(columns[c] for c in COLUMNS), links, strict=True):
            yield lang or "", (source or "").strip(), (target or "").strip(), link


def _tsv(file: Path) -> Iterator[Row]:
    try:
        # Only line feeds end a row: str.splitlines would also cut at U+2028 inside a sentence.
        lines = file.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected UTF-8, but {error}") from None
    header = lines[0].split("\t")
    _check_columns(file, header)
    if lines[-1] == "":
        lines.pop()
    places = [header.index(name) for name in COLUMNS]
    link = header.index(ALIGNMENT) if ALIGNMENT in header else None
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputError(
                f"{file}: line {number} has {len(cells)} cells, the header has {len(header)}"
            )
        lang, source, target = (cells[place].strip() for place in places)
        yield lang, source, target, None if link is None else cells[link].strip() or None


def _check_columns(file: Path, present: list[str]) -> None:
    if missing := [name for name in COLUMNS if name not in present]:
        raise InputError(
            f"{file}: expected columns {', '.join(COLUMNS)}; {missing[0]} is missing, found "
            f"{', '.join(present) or 'nothing'}"
        )

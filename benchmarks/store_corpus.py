"""A million real sentences and their vectors, for the store's benchmarks.

    python -m benchmarks.store_corpus FOLDER PAIRS... [--rows 1000000] [--model models/default]

PAIRS are Parquet files with columns lang, src, trg (English). Distinct texts of 3 to 80 characters are
drawn with a fixed seed and embedded in parts, FOLDER/00000.npy float16 and so on, beside FOLDER/
texts.parquet; parts that are there are kept, so it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

PART_ROWS = 20_000
SHORTEST, LONGEST = 3, 80


def choose(files: list[Path], rows: int) -> pa.Table:
    """Distinct texts with their languages, in a random order that is always the same."""
    parts = []
    for file in sorted(files):
        table = pq.read_table(file, columns=["lang", "src", "trg"])
        english = pa.chunked_array([pa.array(["en"] * table.num_rows)])
        for lang, text in ((table["lang"].cast("string"), table["src"]), (english, table["trg"])):
            part = pa.table({"lang": lang, "text": text.cast("string")})
            length = pc.utf8_length(part["text"])
            fits = pc.and_(pc.greater_equal(length, SHORTEST), pc.less_equal(length, LONGEST))
            parts.append(part.filter(fits))
    table = pa.concat_tables(parts).combine_chunks()
    numbered = table.append_column("n", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by("text").aggregate([("n", "min")])["n_min"].to_numpy()
    order = np.random.default_rng(0).permutation(np.sort(first))
    return table.take(pa.array(order[:rows]))


def read(folder: Path, rows: int) -> tuple[pa.Table, NDArray[np.float32]]:
    """The first `rows` texts (fewer where fewer are embedded) and their unit vectors."""
    parts = sorted(folder.glob("[0-9]*[0-9].npy"))[: -(-rows // PART_ROWS)]
    vectors = np.concatenate([np.load(part) for part in parts])[:rows].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = pq.read_table(folder / "texts.parquet").slice(0, len(vectors))
    # A locale's name for a script, as gettext writes it, is no language tag.
    tags = pc.replace_substring(texts["lang"].cast("string"), "@latin", "-Latn")
    return texts.set_column(texts.column_names.index("lang"), "lang", tags), vectors


def main() -> None:
    from evaluation.subject import ArtifactSubject

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", type=Path, default=Path("models/default"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.parquet"
    if not texts.exists():
        chosen = choose(arguments.pairs, arguments.rows)
        pq.write_table(chosen, texts, row_group_size=PART_ROWS)
    subject, file = ArtifactSubject(arguments.model), pq.ParquetFile(texts)
    for n in range(file.num_row_groups):
        part = folder / f"{n:05d}.npy"
        if not part.exists():
            found = subject.vectors(file.read_row_group(n)["text"].to_pylist())
            new = part.with_suffix(".new")
            with new.open("wb") as out:
                np.save(out, found.astype(np.float16))
            new.rename(part)


if __name__ == "__main__":
    main()

"""Files of sentence pairs, read into tables of src, trg (English) and lang.

    *.parquet  *.csv  *.tsv      a table with a header; columns as the recipe names them
    *.csv.gz  *.tsv.gz           the same, gzipped
    NAME.xx-en                   Moses: NAME.xx-en.xx and NAME.xx-en.en, line by line
    *.tmx                        translation memories; each variant with the English one
    a directory                  all of these below it, or a Hugging Face dataset saved to disk
    hf://datasets/OWNER/NAME/..  Parquet on the hub, streamed without being stored
    phrases                      the few phrases in this package, 41 languages

A row that cannot be used is dropped and counted by reason (`training.rows`); a file that cannot be
read, or that has no usable row, is an error. What is in the sentences is `training.corpus`'s business.
"""

from __future__ import annotations

import glob
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from training.errors import DataError
from training.folders import files_below, judging_of, kind_of
from training.phrases import cldr_phrases
from training.rows import COLUMNS, is_english, joined, require_text, table_of, usable_rows
from training.text_files import first_not_utf8, moses_sides, read_moses, read_separated


@dataclass(frozen=True)
class Source:
    """name: short, for reports. table: string columns src, trg, lang. broken: reason -> rows."""

    name: str
    table: pa.Table
    broken: dict[str, int]


def read_sources(
    places: Sequence[str], columns: tuple[str, str, str], *, every_split: bool = False
) -> list[Source]:
    """Read all of `places`, in order, glob patterns in alphabetical order.

    columns: what text, translation and language are called in tables. every_split: of directories
    and datasets also what is for testing and validation. Raises DataError.
    """
    for one, next_one in pairwise(places):
        if not Path(one).exists() and Path(whole := f"{one},{next_one}").exists():
            raise DataError(
                f"{whole}: commas separate places here; write ? for the comma in this path"
            )
    expanded = [place for pattern in places for place in _expand(pattern)]
    return [_read(place, columns, every_split) for place in expanded]


def _expand(pattern: str) -> list[str]:
    if pattern == "phrases" or pattern.startswith("hf://") or not glob.has_magic(pattern):
        return [pattern]
    if found := sorted(
        glob.glob(pattern, recursive=True)  # noqa: PTH207  absolute patterns too
    ):
        return found
    raise DataError(f"{pattern}: no file matches")


def _read(place: str, columns: tuple[str, str, str], every_split: bool) -> Source:
    path = Path(place)
    if place == "phrases":
        table, broken = usable_rows(table_of(*zip(*cldr_phrases(), strict=True)), place)
    elif place.startswith("hf://"):
        table, broken = _hub(place, columns, every_split)
    elif path.is_dir():
        table, broken = _directory(path, columns, every_split)
    else:
        table, broken = _file(path, columns)
    if not len(table):
        raise DataError(f"{place}: has no usable pair" + (f" ({broken})" if broken else ""))
    name = path.name[: -len(".gz")] if path.suffix.lower() == ".gz" else path.name
    return Source(Path(name).stem if path.suffix != "" else name, table, broken)


def _file(path: Path, columns: tuple[str, str, str]) -> tuple[pa.Table, dict[str, int]]:
    """A table of the usable rows of one file, or of a Moses pair; and reason -> rows left out."""
    kind = kind_of(path)
    broken: dict[str, int] = {}
    text: list[Path] = []
    try:
        if kind == ".parquet":
            raw = _parquet(path, columns)
        elif kind == ".arrow":
            raw = _arrow(path, columns)
        elif kind in (".csv", ".tsv", ".csv.gz", ".tsv.gz"):
            raw, broken = read_separated(path, columns)
            text = [path]
        elif kind == ".tmx":
            raw, broken = _tmx(path)
        elif "-" in kind and not kind.endswith(".gz"):
            raw = read_moses(path)
            text = [path.with_name(f"{path.name}.{side}") for side in moses_sides(path)]
        else:
            raise DataError(
                f"{path}: expected .parquet, .csv, .tsv, .tmx, a Moses name such as corpus.de-en, "
                "a directory, hf://… or phrases"
            )
        table, unusable = usable_rows(raw, path, lambda: first_not_utf8(*text))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path}: expected this file, found none") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return table, {k: n for k, n in (broken | unusable).items() if n}


def _parquet(path: Path, columns: tuple[str, str, str]) -> pa.Table:
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty")
    file = pyarrow.parquet.ParquetFile(path)
    require_text(file.schema_arrow, columns, path)
    return file.read(columns=list(columns)).select(list(columns)).rename_columns(list(COLUMNS))


def _arrow(path: Path, columns: tuple[str, str, str]) -> pa.Table:
    """A stream of Arrow, as the `datasets` library saves it."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
        require_text(reader.schema, columns, path)
        return reader.read_all().select(list(columns)).rename_columns(list(COLUMNS))


def _tmx(path: Path) -> tuple[pa.Table, dict[str, int]]:
    from defusedxml import ElementTree, common  # noqa: PLC0415  only where TMX is read

    rows: list[tuple[str, str, str]] = []
    lonely = 0
    try:
        with path.open("rb") as file:
            for variants in _translation_units(ElementTree, file):
                english = next((t for tag, t in variants if is_english(tag)), None)
                others = [(t, tag) for tag, t in variants if not is_english(tag)]
                if english is None or not others:
                    lonely += 1
                    continue
                rows += [(text, english, tag) for text, tag in others]
    except (ElementTree.ParseError, common.DefusedXmlException) as error:
        raise DataError(f"{path}: not a readable TMX: {error}") from None
    src, trg, lang = zip(*rows, strict=True) if rows else ((), (), ())
    return table_of(src, trg, lang), {"unit without English or without another language": lonely}


def _translation_units(parser: Any, file: BinaryIO) -> Iterator[list[tuple[str, str]]]:
    """(language, text) of the variants of each unit, one unit in memory at a time."""
    for _, element in parser.iterparse(file, events=("end",), forbid_dtd=False):
        if element.tag != "tu":
            continue
        variants = []
        for variant in element.iter("tuv"):
            tag = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang")
            segment = variant.find("seg")
            text = "" if segment is None else "".join(segment.itertext())
            variants.append((tag or "", " ".join(text.split())))
        yield variants
        element.clear()


def _directory(
    path: Path, columns: tuple[str, str, str], every_split: bool
) -> tuple[pa.Table, dict[str, int]]:
    """All files of known kinds below it, one after another; of a dataset with splits, train."""
    files, others = files_below(path)
    if every_split:
        files, others = files + others, []
    tables: list[pa.Table] = []
    broken = Counter[str]()
    for file in files:
        table, of_file = _file(file, columns)
        tables.append(table)
        broken.update(of_file)
    reason = _not_for_training([file.relative_to(path).as_posix() for file in others])
    for file in others:
        table, _ = _file(file, columns)
        broken[reason] += len(table)
    return pa.concat_tables(tables).combine_chunks(), dict(+broken)


def _not_for_training(files: Sequence[str]) -> str:
    shown = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return f"for testing or validation ({shown}; named alone it is read)"


def _hub(
    place: str, columns: tuple[str, str, str], every_split: bool
) -> tuple[pa.Table, dict[str, int]]:
    """Parquet files behind any address that huggingface_hub's file system knows."""
    from huggingface_hub import HfFileSystem  # noqa: PLC0415  slow, and only needed here

    address = place.removeprefix("hf://")
    raw, broken = _streamed(HfFileSystem(), address, columns, place, every_split)
    table, unusable = usable_rows(raw, place)
    return table, broken | unusable


def _streamed(
    system: Any,
    address: str,
    columns: tuple[str, str, str],
    place: str,
    every_split: bool = False,
) -> tuple[pa.Table, dict[str, int]]:
    """Read the wanted columns of the Parquet files at `address`, a file, folder or pattern."""
    judging: set[str] = set()
    if glob.has_magic(address):
        files = sorted(system.glob(address))
    elif address.endswith(".parquet"):
        files = [address]
    else:
        files = sorted(system.glob(f"{address}/**/*.parquet"))
        below = {name.partition(address)[2]: name for name in files}
        judging = set() if every_split else {below[name] for name in judging_of(list(below))}
    if not files:
        raise DataError(f"{place}: no Parquet file there")
    tables, left_out = [], 0
    for name in files:
        with system.open(name, "rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            if name in judging:
                left_out += parquet.metadata.num_rows
                continue
            require_text(parquet.schema_arrow, columns, f"{place} ({name})")
            tables.append(joined(_batches(parquet, columns)))
    table = joined(tables).select(list(columns)).rename_columns(list(COLUMNS))
    return table, {_not_for_training(sorted(judging)): left_out} if left_out else {}


def _batches(parquet: pyarrow.parquet.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    for batch in parquet.iter_batches(columns=list(columns)):
        yield pa.Table.from_batches([batch])

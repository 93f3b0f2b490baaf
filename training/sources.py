"""Files of sentence pairs, read into tables of src, trg (English) and lang.

    *.parquet  *.csv  *.tsv      a table with a header; columns as the recipe names them
    NAME.xx-en                   Moses: NAME.xx-en.xx and NAME.xx-en.en, line by line
    *.tmx                        translation memories; each variant with the English one
    a directory                  a Hugging Face dataset saved to disk, or Parquet files
    hf://datasets/OWNER/NAME/..  Parquet on the hub, streamed without being stored
    phrases                      the few phrases in this package, 41 languages

A row that cannot be used is dropped and counted by reason; a file that cannot be read, or that
has no usable row, is an error. What is in the sentences is `training.corpus`'s business.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from training.errors import DataError
from training.phrases import cldr_phrases

COLUMNS = ("src", "trg", "lang")


@dataclass(frozen=True)
class Source:
    """name: short, for reports. table: string columns src, trg, lang. broken: reason -> rows."""

    name: str
    table: pa.Table
    broken: dict[str, int]


def read_sources(places: Sequence[str], columns: tuple[str, str, str]) -> list[Source]:
    """Read all of `places`, in order, glob patterns in alphabetical order.

    columns: what text, translation and language are called in tables. Raises DataError.
    """
    return [_read(place, columns) for pattern in places for place in _expand(pattern)]


def _expand(pattern: str) -> list[str]:
    if pattern == "phrases" or pattern.startswith("hf://") or not glob.has_magic(pattern):
        return [pattern]
    if found := sorted(
        glob.glob(pattern, recursive=True)  # noqa: PTH207  absolute patterns too
    ):
        return found
    raise DataError(f"{pattern}: no file matches")


def _read(place: str, columns: tuple[str, str, str]) -> Source:
    path = Path(place)
    broken: dict[str, int] = {}
    try:
        if place == "phrases":
            raw = _phrases()
        elif place.startswith("hf://"):
            raw = _hub(place, columns)
        elif path.is_dir():
            raw = _directory(path, columns)
        elif path.suffix == ".parquet":
            raw = _parquet(path, columns)
        elif path.suffix in (".csv", ".tsv"):
            raw, broken = _separated(path, columns)
        elif path.suffix == ".tmx":
            raw, broken = _tmx(path)
        elif "-" in path.suffix:
            raw = _moses(path)
        else:
            raise DataError(
                f"{place}: expected .parquet, .csv, .tsv, .tmx, a Moses name such as corpus.de-en, "
                "a directory, hf://… or phrases"
            )
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or place}: expected this file, found none") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: cannot be read: {str(error).splitlines()[0]}") from None
    table, unusable = _usable(raw)
    broken = {k: n for k, n in (broken | unusable).items() if n}
    if not len(table):
        raise DataError(f"{place}: has no usable pair" + (f" ({broken})" if broken else ""))
    return Source(path.stem if path.suffix != "" else path.name, table, broken)


def _usable(raw: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Drop rows whose text is missing, blank or no Unicode, or that have no language."""
    texts, broken = {}, {}
    good = np.ones(len(raw), bool)
    for column in COLUMNS:
        texts[column] = text = _decode(raw[column])
        filled = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
        fine = pc.fill_null(filled, False).to_numpy(zero_copy_only=False)
        what = "no language" if column == "lang" else f"no text in {column}"
        broken[what] = int((good & ~fine).sum())  # a row counts once, for the first it lacks
        good &= fine
    return pa.table(texts).filter(pa.array(good)), broken


def _decode(column: pa.ChunkedArray) -> pa.Array:
    """To large strings; null where the bytes are no UTF-8."""
    raw = column.cast(pa.large_binary()).combine_chunks()
    if isinstance(raw, pa.ChunkedArray):
        raw = pa.concat_arrays(raw.chunks) if raw.num_chunks else pa.array([], pa.large_binary())
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array([_text(b) for b in raw.to_pylist()], pa.large_string())


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def _named(found: Sequence[str], columns: tuple[str, str, str], place: object) -> None:
    for column in columns:
        if column not in found:
            raise DataError(
                f"{place}: expected a column {column!r}, found {', '.join(found) or 'none'}"
            )


def _parquet(path: Path, columns: tuple[str, str, str]) -> pa.Table:
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty")
    file = pyarrow.parquet.ParquetFile(path)
    _named(file.schema_arrow.names, columns, path)
    return file.read(columns=list(columns)).rename_columns(list(COLUMNS))


def _separated(path: Path, columns: tuple[str, str, str]) -> tuple[pa.Table, dict[str, int]]:
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty")
    tabs = path.suffix == ".tsv"
    misshapen = 0

    def count(_: Any) -> str:
        nonlocal misshapen
        misshapen += 1
        return "skip"

    with path.open("rb") as file:
        head = file.readline().decode(errors="replace")
    names = [n.strip().strip('"').lstrip("\ufeff") for n in head.split("\t" if tabs else ",")]
    _named(names, columns, path)
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # the rows' order is their number
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if tabs else ",",
            quote_char=False if tabs else '"',  # a quotation mark in a .tsv is a quotation mark
            newlines_in_values=not tabs,
            invalid_row_handler=count,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.binary()),
            check_utf8=False,
        ),
    )
    return table.rename_columns(list(COLUMNS)), {"wrong number of fields": misshapen}


def _moses(path: Path) -> pa.Table:
    first, _, second = path.suffix[1:].partition("-")
    lang, english = (second, first) if first == "en" else (first, second)
    sides = {}
    for side in (lang, english):
        file = path.with_name(f"{path.name}.{side}")
        sides[side] = file.read_bytes().split(b"\n")
        if sides[side][-1] == b"":
            sides[side].pop()
    count, other = len(sides[lang]), len(sides[english])
    if count != other:
        raise DataError(f"{path}: {count} lines in {lang}, but {other} in {english}")
    return _columns(sides[lang], sides[english], [lang] * count)


def _columns(src: Sequence[Any], trg: Sequence[Any], lang: Sequence[str]) -> pa.Table:
    """Rows as they were read, bytes or text, to a raw table."""
    made = {
        "src": pa.array(src, pa.binary()),
        "trg": pa.array(trg, pa.binary()),
        "lang": pa.array(lang, pa.string()),
    }
    return pa.table(made)


def _tmx(path: Path) -> tuple[pa.Table, dict[str, int]]:
    from defusedxml import ElementTree, common  # noqa: PLC0415  only where TMX is read

    rows: list[tuple[str, str, str]] = []
    lonely = 0
    try:
        with path.open("rb") as file:
            for variants in _translation_units(ElementTree, file):
                english = next((t for tag, t in variants if _is_english(tag)), None)
                others = [(t, tag) for tag, t in variants if not _is_english(tag)]
                if english is None or not others:
                    lonely += 1
                    continue
                rows += [(text, english, tag) for text, tag in others]
    except (ElementTree.ParseError, common.DefusedXmlException) as error:
        raise DataError(f"{path}: not a readable TMX: {error}") from None
    src, trg, lang = zip(*rows, strict=True) if rows else ((), (), ())
    return _columns(src, trg, lang), {"unit without English or without another language": lonely}


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


def _is_english(tag: str) -> bool:
    return tag.lower().replace("_", "-").split("-")[0] == "en"


def _directory(path: Path, columns: tuple[str, str, str]) -> pa.Table:
    """A dataset that the `datasets` library saved: Arrow streams, or shards of Parquet."""
    streams = sorted(path.rglob("*.arrow"))
    shards = sorted(path.rglob("*.parquet"))
    tables: list[pa.Table] = []
    for file in streams or shards:
        if file.suffix == ".arrow":
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as reader:
                _named(reader.schema.names, columns, file)
                tables.append(reader.read_all().select(list(columns)))
        else:
            tables.append(_parquet(file, columns).rename_columns(list(columns)))
    if not tables:
        raise DataError(f"{path}: expected .arrow or .parquet files in this directory, found none")
    return _joined(tables).rename_columns(list(COLUMNS))


def _hub(place: str, columns: tuple[str, str, str]) -> pa.Table:
    """Parquet files behind any address that huggingface_hub's file system knows."""
    from huggingface_hub import HfFileSystem  # noqa: PLC0415  slow, and only needed here

    return _streamed(HfFileSystem(), place.removeprefix("hf://"), columns, place)


def _streamed(system: Any, address: str, columns: tuple[str, str, str], place: str) -> pa.Table:
    """Read the wanted columns of the Parquet files at `address`, a file, folder or pattern."""
    if glob.has_magic(address):
        files = sorted(system.glob(address))
    elif address.endswith(".parquet"):
        files = [address]
    else:
        files = sorted(system.glob(f"{address}/**/*.parquet"))
    if not files:
        raise DataError(f"{place}: no Parquet file there")
    tables = []
    for name in files:
        with system.open(name, "rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            _named(parquet.schema_arrow.names, columns, f"{place} ({name})")
            tables.append(_joined(_batches(parquet, columns)))
    return _joined(tables).rename_columns(list(COLUMNS))


def _batches(parquet: pyarrow.parquet.ParquetFile, columns: Sequence[str]) -> Iterator[pa.Table]:
    for batch in parquet.iter_batches(columns=list(columns)):
        yield pa.Table.from_batches([batch])


def _joined(tables: Iterable[pa.Table]) -> pa.Table:
    """One table; text columns of different Arrow types become binary."""
    binary = [
        pa.table({name: table[name].cast(pa.large_binary()) for name in table.column_names})
        for table in tables
    ]
    return pa.concat_tables(binary)


def _phrases() -> pa.Table:
    src, trg, lang = zip(*cldr_phrases(), strict=True)
    return _columns(src, trg, lang)

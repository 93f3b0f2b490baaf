"""Pairs in files of text: CSV and TSV with a header, as they are or gzipped, and Moses.

A .tsv has one row a line and quotation marks are quotation marks, unless the whole file shows
CSV's convention, as Python's csv and pandas write it: cells in quotation marks, doubled within.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.csv

from training.errors import DataError
from training.rows import COLUMNS, is_english, require_columns, table_of

LONGEST_ROW = 2**28  # bytes; Arrow holds blocks of twice as much at a time
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_separated(path: Path, columns: tuple[str, str, str]) -> tuple[pa.Table, dict[str, int]]:
    """A raw table of src, trg, lang, and reason -> rows left out. Raises DataError."""
    with open_text(path) as file:
        head = file.readline()
    if not head:
        raise DataError(f"{path}: is empty")
    comma = path.name.lower().removesuffix(".gz").endswith(".csv")
    delimiter = "," if comma else "\t"
    cells = head.decode(errors="replace").lstrip("\ufeff").rstrip("\r\n").split(delimiter)
    names = [n.strip().removeprefix('"').removesuffix('"') for n in cells]
    require_columns(names, columns, path)
    if comma:
        if unclosed := _flaw(path, delimiter, strict=False):  # it would swallow all rows after it
            raise DataError(f"{path}: {unclosed}")
        return _parse(path, columns, delimiter, quoted=True)
    if any(c.startswith('"') for c in cells):
        if flaw := _flaw(path, delimiter):
            raise DataError(
                f"{path}: the header is in quotation marks, but not all cells are as CSV writes "
                f"them: {flaw}"
            )
        return _parse(path, columns, delimiter, quoted=True)
    table, broken = _parse(path, columns, delimiter, quoted=False)
    doubled = _doubled(path)
    if (doubled or any(broken.values())) and not _flaw(path, delimiter):
        by_csv = _parse(path, columns, delimiter, quoted=True)
        if doubled or sum(by_csv[1].values()) < sum(broken.values()):
            return by_csv
    return table, broken


def read_moses(path: Path) -> pa.Table:
    """A raw table of NAME.xx-en.xx and NAME.xx-en.en, or of en-xx; `path`: NAME.xx-en.

    Raises DataError, or FileNotFoundError where a side is missing.
    """
    foreign, english = moses_sides(path)
    src, trg = (_lines(path.with_name(f"{path.name}.{side}")) for side in (foreign, english))
    if len(src) != len(trg):
        raise DataError(f"{path}: {len(src)} lines in {foreign}, but {len(trg)} in {english}")
    return table_of(src, trg, [foreign] * len(src))


def moses_sides(path: Path) -> tuple[str, str]:
    """The two languages in the name, as they are written: (the other, English). Raises DataError.

    Tags may have subtags (pt-BR-en): of the places where the name can be cut, the one whose files
    are there is taken.
    """
    parts = path.suffix[1:].split("-")
    cuts = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    sides = [
        (second, first) if is_english(first) else (first, second)
        for first, second in cuts
        if is_english(first) != is_english(second)
    ]
    sides.sort(key=lambda pair: pair[1].lower() != "en")
    if not sides:
        raise DataError(
            f"{path}: one side must be English, for translations (trg) are: expected a name such as "
            f"{path.stem}.{parts[0]}-en, with one file for each side"
        )
    for pair in sides:
        if all(path.with_name(f"{path.name}.{side}").is_file() for side in pair):
            return pair
    return sides[0]


def first_not_utf8(*files: Path) -> str:
    """FILE, line N of the first line that is not UTF-8; empty where all are."""
    for path in files:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return f"{path}, line {number}"
    return ""


def open_text(path: Path) -> BinaryIO:
    """The bytes of a file of text, decompressed. Raises DataError where they are UTF-16."""
    packed = path.suffix.lower() == ".gz"
    file = cast(BinaryIO, gzip.GzipFile(path)) if packed else path.open("rb")
    start = file.read(4)
    if start.startswith(UTF16) or b"\0" in start:
        file.close()
        raise DataError(
            f"{path}: is in UTF-16, and UTF-8 is expected; convert it: iconv -f UTF-16 -t UTF-8"
        )
    file.seek(0)
    return file


def _lines(path: Path) -> list[bytes]:
    with open_text(path) as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _parse(
    path: Path, columns: tuple[str, str, str], delimiter: str, *, quoted: bool
) -> tuple[pa.Table, dict[str, int]]:
    misshapen = 0

    def count(_: Any) -> str:
        nonlocal misshapen
        misshapen += 1
        return "skip"

    size = 2**20
    while True:
        misshapen = 0
        try:
            with open_text(path) as file:
                table = pyarrow.csv.read_csv(
                    file,
                    # One thread: the rows' order is their number.
                    read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=size),
                    parse_options=pyarrow.csv.ParseOptions(
                        delimiter=delimiter,
                        quote_char='"' if quoted else False,
                        newlines_in_values=quoted,
                        invalid_row_handler=count,
                    ),
                    convert_options=pyarrow.csv.ConvertOptions(
                        include_columns=list(columns),
                        column_types=dict.fromkeys(columns, pa.binary()),
                        check_utf8=False,
                    ),
                )
            return table.rename_columns(list(COLUMNS)), {"wrong number of fields": misshapen}
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):  # Arrow's word for a row longer than its block
                raise
        if size >= LONGEST_ROW:
            raise DataError(f"{path}: has a row of more than {LONGEST_ROW >> 20} MB")
        size *= 16


def _doubled(path: Path) -> bool:
    """Whether a quotation mark is doubled anywhere, as within CSV's cells."""
    with open_text(path) as file:
        return any(b'""' in line for line in file)


def _flaw(path: Path, delimiter: str, *, strict: bool = True) -> str:
    """What speaks against CSV's convention for quotation marks, and where; empty where nothing does.

    Every cell with a quotation mark is then within two, and each between them is doubled. strict:
    else only a quotation mark that is never closed is one.
    """
    mark = re.escape(delimiter.encode())
    plain = re.compile(rb"[^" + (rb'"' if strict else b"") + mark + rb"\r\n]*")
    within = re.compile(rb'(?:[^"]|"")*')
    ends = (delimiter.encode(), b"\r", b"\n", b"")
    opened = 0  # the line in which a cell began that is not closed yet
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not opened and b'"' not in line:
                continue
            at = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            while True:
                if opened or line[at : at + 1] == b'"':
                    at += not opened
                    opened = opened or number
                    at = cast(re.Match[bytes], within.match(line, at)).end()
                    if at == len(line):
                        break  # the cell goes on in the next line
                    at, opened = at + 1, 0
                    if strict and line[at : at + 1] not in ends:
                        return f"a cell goes on after its quotation mark in line {number}"
                at = cast(re.Match[bytes], plain.match(line, at)).end()
                if line[at : at + 1] not in ends:
                    return f"a quotation mark stands within a cell in line {number}"
                if line[at : at + 1] != delimiter.encode():
                    break
                at += 1
    return f"the quotation mark in line {opened} is never closed" if opened else ""

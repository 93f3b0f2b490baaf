"""Rows as a file has them, cleaned into pairs: text in UTF-8, and a language tag that means one.

Refuses to know files and formats. A row that cannot be used is dropped and counted by reason; a
table that is in another encoding than UTF-8 is refused, for its other rows would be a skewed rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mexma import language_tags
from training.errors import DataError

COLUMNS = ("src", "trg", "lang")

# Of rows that are not all ASCII more than half, and of all rows one in a hundred: another encoding.
FOREIGN_OF_BEYOND_ASCII = 0.5
FOREIGN_OF_ALL = 0.01

# gettext's locales name scripts so, as in `sr_RS@latin`; other modifiers are variants (`ca@valencia`).
SCRIPTS = {"latin": "latn", "cyrillic": "cyrl", "devanagari": "deva", "arabic": "arab"}


def canonical_tag(tag: str) -> str | None:
    """A language tag as BCP 47 writes it: `zh-Hant-TW` for ` ZH_hant_tw `, `de` for `deu`; None for what is
    none, or of no registered language."""
    locale, at, modifier = tag.strip().partition("@")
    if script := SCRIPTS.get(modifier.lower()):
        language, *region = locale.replace("_", "-").split("-", 1)
        locale = "-".join([language, script, *region])
    elif at:
        locale = f"{locale}-{modifier}"
    try:
        return language_tags.canonical_tag(locale)
    except ValueError:
        return None


def is_english(tag: str) -> bool:
    """Whether a language tag, in whatever case, is one of English."""
    return tag.strip().lower().replace("_", "-").split("-")[0] == "en"


def table_of(src: Sequence[Any], trg: Sequence[Any], lang: Sequence[str]) -> pa.Table:
    """Rows as they were read, bytes or text, to a raw table."""
    made = {
        "src": pa.array(src, pa.binary()),
        "trg": pa.array(trg, pa.binary()),
        "lang": pa.array(lang, pa.string()),
    }
    return pa.table(made)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """One table; text columns of different Arrow types become binary."""
    binary = [
        pa.table({name: table[name].cast(pa.large_binary()) for name in table.column_names})
        for table in tables
    ]
    return pa.concat_tables(binary)


def require_columns(found: Sequence[str], columns: Sequence[str], place: object) -> None:
    """Raises DataError that names the column which `place` lacks."""
    for column in columns:
        if column not in found:
            raise DataError(
                f"{place}: expected a column {column!r}, found {', '.join(found) or 'none'}; other names "
                "are told with columns=SRC,TRG,LANG"
            )


def require_text(schema: pa.Schema, columns: Sequence[str], place: object) -> None:
    """Raises DataError that names the column which `place` lacks, or that holds no text."""
    require_columns(schema.names, columns, place)
    for column in columns:
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        raw = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
        if not any(check(kind) for check in (*text, *raw)):
            raise DataError(f"{place}: column {column!r} must hold text, found {kind}")


def usable_rows(
    raw: pa.Table, place: object, where: Callable[[], str] = str
) -> tuple[pa.Table, dict[str, int]]:
    """Drop rows that lack a text or a language, or are not UTF-8: (table of strings, reason -> rows).

    raw: src, trg and lang, of any text type. where: says where in `place` the first bytes are that
    are not UTF-8; asked only if there are some. Raises DataError where most of the text is not UTF-8.
    """
    texts: dict[str, pa.Array] = {}
    broken: dict[str, int] = {}
    first = ""
    good = np.ones(len(raw), bool)
    foreign, beyond_ascii = np.zeros(len(raw), bool), np.zeros(len(raw), bool)
    for column in COLUMNS:
        encoded = _one_binary(raw[column])
        text, undecodable = _decode(encoded)
        foreign |= undecodable
        characters = pc.fill_null(pc.utf8_length(text), -1).to_numpy(zero_copy_only=False)
        sizes = pc.fill_null(pc.binary_length(encoded), -1).to_numpy(zero_copy_only=False)
        beyond_ascii |= characters != sizes
        if column == "lang":
            text, unknown, example = _tags(text)
            broken[f"no language tag of BCP 47 such as 'de' ({example})"] = int(
                (good & unknown & ~undecodable).sum()
            )
        else:
            unknown = np.zeros(len(raw), bool)
        filled = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
        fine = pc.fill_null(filled, False).to_numpy(zero_copy_only=False)
        texts[column] = text
        what = "no language" if column == "lang" else f"no text in {column}"
        # A row counts once, for the first that it lacks.
        broken[what] = int((good & ~fine & ~undecodable & ~unknown).sum())
        if undecodable.any():
            first = first or where()
            reason = "not UTF-8" + (f" (first in {first})" if first else "")
            broken[reason] = broken.get(reason, 0) + int((good & undecodable).sum())
        good &= fine
    count = int(foreign.sum())
    if count > FOREIGN_OF_ALL * len(raw) and count > FOREIGN_OF_BEYOND_ASCII * beyond_ascii.sum():
        raise DataError(
            f"{first or place}: expected UTF-8, but {count} of {len(raw)} rows are not, which is "
            f"most of those that are not all ASCII; convert the file, such as with iconv"
        )
    return pa.table(texts).filter(pa.array(good)), {k: n for k, n in broken.items() if n}


def _one_binary(column: pa.ChunkedArray) -> pa.LargeBinaryArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    raw = column.cast(pa.large_binary()).combine_chunks()
    if isinstance(raw, pa.ChunkedArray):
        raw = pa.concat_arrays(raw.chunks) if raw.num_chunks else pa.array([], pa.large_binary())
    return raw


def _decode(raw: pa.LargeBinaryArray) -> tuple[pa.LargeStringArray, NDArray[np.bool_]]:
    """To strings, null where the bytes are no UTF-8; and where that is."""
    try:
        return raw.cast(pa.large_string()), np.zeros(len(raw), bool)
    except pa.ArrowInvalid:
        text = pa.array([_text(b) for b in raw.to_pylist()], pa.large_string())
        lost = pc.and_(pc.is_null(text), pc.is_valid(raw))
        return text, lost.to_numpy(zero_copy_only=False)


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


SHOWN_TAGS = 3


def _tags(text: pa.LargeStringArray) -> tuple[pa.LargeStringArray, NDArray[np.bool_], str]:
    """Tags in their canonical form, null where there is none; where that is; and the first such."""
    encoded = text.dictionary_encode()
    found = encoded.dictionary.to_pylist()
    tags = [canonical_tag(tag) for tag in found]
    if tags == found:
        return text, np.zeros(len(text), bool), ""
    bad = [tag for tag, canonical in zip(found, tags, strict=True) if tag.strip() and not canonical]
    unknown = pc.fill_null(pc.is_in(text, value_set=pa.array(bad, pa.large_string())), False)
    # Of several, first those that can be helped.
    bad.sort(key=lambda tag: not language_tags.meant_by(tag))
    shown = ", ".join(_told(tag) for tag in bad[:SHOWN_TAGS])
    if len(bad) > SHOWN_TAGS:
        shown += f" and {len(bad) - SHOWN_TAGS} more"
    written = pa.array(tags, pa.large_string()).take(encoded.indices)
    return written, unknown.to_numpy(zero_copy_only=False), shown


def _told(tag: str) -> str:
    meant = language_tags.meant_by(tag)
    return repr(tag if len(tag) <= 40 else tag[:40] + "…") + (
        f": {meant!r} may be meant" if meant else ""
    )

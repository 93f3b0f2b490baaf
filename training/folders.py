"""Which files of a directory are read: those of all kinds that are known, and of splits the train one.

Refuses to know what is in them. Splits are told by `dataset_dict.json`, which the `datasets` library
writes, or by names as on Hugging Face's hub: `test-00000.parquet`, `validation/…`, `dev.de-en`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from training.errors import DataError
from training.rows import is_english

TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".tmx")
# What else may hold pairs, and would be left out without a word.
UNREAD = (
    ".jsonl", ".ndjson", ".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".xlsx", ".xls", ".sqlite",
    ".avro", ".orc", ".feather", ".txt", ".json",
)  # fmt: skip
# Of these, what lies beside data and is none.
ABOUT = {
    "readme.txt", "license.txt", "licence.txt", "notice.txt", "copying.txt", "authors.txt",
    "citation.txt", "changelog.txt", "dataset_info.json", "dataset_infos.json", "dataset_dict.json",
    "state.json",
}  # fmt: skip
JUDGING = {"test", "testing", "dev", "valid", "validation", "eval", "evaluation"}
SIDE = re.compile(r".+\.(?P<pair>[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)+)\.(?P<side>[A-Za-z0-9_-]+)")


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, in lower case: .tsv, .tsv.gz, .de-en."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix + (".gz" if name.endswith(".gz") else "")


def files_below(path: Path) -> tuple[list[Path], list[Path]]:
    """Files to read of a directory, sorted (of a Moses pair its common name), and those of other splits.

    Raises DataError where there is none, or one that would have to be ignored.
    """
    root = _train_of(path) if (path / "dataset_dict.json").is_file() else path
    found: set[Path] = set()
    unread = []
    for file in path.rglob("*"):
        inside = file.relative_to(path)
        hidden = any(part.startswith(".") for part in inside.parts)
        cached = file.suffix == ".arrow" and file.name.startswith(("cache-", "tmp"))
        if hidden or cached or not file.is_file():
            continue
        if kind_of(file) in TABLES:
            found.add(file)
        elif pair := _moses_name(file):
            found.add(pair)
        elif (file.name.lower().endswith(UNREAD) and file.name.lower() not in ABOUT) or (
            file.suffix == ".en"  # half of a Moses pair whose name does not say of which
        ):
            unread.append(str(inside))
    if unread:
        shown = ", ".join(sorted(unread)[:3]) + (", …" if len(unread) > 3 else "")
        raise DataError(
            f"{path}: holds {shown}, which would not be read: expected {', '.join(TABLES)} or Moses "
            "pairs such as news.de-en.de and news.de-en.en; convert it, rename it or move it away"
        )
    if not found:
        raise DataError(
            f"{path}: expected {', '.join(TABLES)} or Moses files in this directory, found none"
        )
    if root != path:
        return sorted(f for f in found if root in f.parents), sorted(
            f for f in found if root not in f.parents
        )
    judging = judging_of([f.relative_to(path).as_posix() for f in found])
    others = {f for f in found if f.relative_to(path).as_posix() in judging}
    return sorted(found - others), sorted(others)


def judging_of(names: Sequence[str]) -> set[str]:
    """Of files, by their paths below what was asked for, those of test and validation splits.

    None where all of them are: then it was such a split that was asked for.
    """
    found = {
        name
        for name in names
        if any(JUDGING & set(re.split("[^a-z0-9]+", p.lower())) for p in PurePosixPath(name).parts)
    }
    return set() if len(found) == len(names) else found


def _train_of(path: Path) -> Path:
    try:
        splits = [str(s) for s in json.loads((path / "dataset_dict.json").read_bytes())["splits"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path / 'dataset_dict.json'}: expected a list of splits") from None
    if "train" not in splits:
        raise DataError(
            f"{path}: has the splits {', '.join(splits) or 'none'} and no train; name the one to "
            f"read, such as {path / (splits or ['NAME'])[0]}"
        )
    return path / "train"


def _moses_name(file: Path) -> Path | None:
    """news.de-en for news.de-en.de: what names both of its sides, if the file is one."""
    named = SIDE.fullmatch(file.name)
    if not named:
        return None
    pair, side = named["pair"], named["side"]
    whole = pair.startswith(f"{side}-") or pair.endswith(f"-{side}")
    english = any(is_english(part) for part in pair.split("-"))
    return file.with_suffix("") if whole and english else None

"""Results as tables: Markdown for people, JSON for programs, both with their circumstances."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mexma import __version__

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tokenizers",
    "scikit-learn",
    "httpx",
)


@dataclass(frozen=True)
class Column:
    """name: unique in its table. better: "higher", "lower" or "" where neither is. digits:
    after the point. baseline: a plain alternative's number, not the subject's."""

    name: str
    better: str = ""
    digits: int = 1
    baseline: bool = False


@dataclass
class Table:
    """One metric. note: which variant it is, in words. rows: language -> a number or None for
    each column. means: name -> the same. skipped: language -> why it has no row."""

    metric: str
    note: str
    columns: Sequence[Column]
    rows: dict[str, list[float | None]] = field(default_factory=dict)
    means: dict[str, list[float | None]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add_mean(self, name: str, languages: Iterable[str] | None = None) -> None:
        """Add the unweighted mean over `languages`, all by default, of each column."""
        chosen = [self.rows[lang] for lang in (self.rows if languages is None else languages)]
        if chosen:
            self.means[name] = [
                None if any(v is None for v in values) else float(np.mean(np.array(values, float)))
                for values in zip(*chosen, strict=True)
            ]

    def markdown(self) -> str:
        """A heading, the note, the means in bold and a row for each language."""
        head = [f"{c.name}{_ARROWS[c.better]}" for c in self.columns]
        lines = [
            f"## {self.metric}",
            "",
            self.note,
            "",
            "| | " + " | ".join(head) + " |",
            "|---|" + "---:|" * len(head),
        ]
        for name, values in self.means.items():
            cells = [f"**{cell}**" for cell in self._cells(values)]
            lines.append(f"| **{name}** | " + " | ".join(cells) + " |")
        for name, values in self.rows.items():
            lines.append(f"| {name} | " + " | ".join(self._cells(values)) + " |")
        if self.skipped:
            listed = "; ".join(f"{lang}: {why}" for lang, why in self.skipped.items())
            lines += ["", f"Left out: {listed}."]
        return "\n".join(lines) + "\n"

    def _cells(self, values: Sequence[float | None]) -> list[str]:
        return [
            "" if value is None else f"{value:.{column.digits}f}"
            for column, value in zip(self.columns, values, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each row and mean as column -> number."""
        names = [c.name for c in self.columns]

        def named(rows: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
            return {k: dict(zip(names, values, strict=True)) for k, values in rows.items()}

        return {
            "metric": self.metric,
            "variant": self.note,
            "columns": {
                c.name: {"better": c.better or None, "baseline": c.baseline} for c in self.columns
            },
            "means": named(self.means),
            "languages": named(self.rows),
            "skipped": self.skipped,
        }


_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass
class Report:
    """All tables of one run, and under which circumstances they came about."""

    subject: dict[str, Any]
    data: list[dict[str, Any]]
    settings: dict[str, Any]
    tables: list[Table]
    circumstances: dict[str, Any]

    def to_json(self) -> str:
        content = {
            "subject": self.subject,
            "data": self.data,
            "settings": self.settings,
            "circumstances": self.circumstances,
            "tables": [table.to_dict() for table in self.tables],
        }
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self) -> str:
        subject, c = self.subject, self.circumstances
        packages = ", ".join(f"{name} {found}" for name, found in c["packages"].items())
        data = "; ".join(f"{d['file']} (SHA-256 {d['sha256'][:16]}…)" for d in self.data)
        described = ", ".join(
            f"{key} {value}"
            for key, value in subject.items()
            if key not in ("kind", "name", "truncated") and value not in (None, "")
        )
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items() if v is not None)
        lines = [
            f"# Evaluation of {subject['kind']} {subject['name']}",
            "",
            f"{described}; {subject['truncated']} texts cut.",
            f"Data: {data}; {settings}.",
            f"{c['processor']}, {c['cores']} cores; Python {c['python']}, mexma {c['mexma']}, "
            f"{packages}; {c['date']}.",
            "",
            "↑ higher is better, ↓ lower is better. Means are over languages, unweighted.",
            "",
        ]
        return "\n".join(lines) + "\n" + "\n".join(table.markdown() for table in self.tables)


def circumstances() -> dict[str, Any]:
    """Hardware, versions and date of this run."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "mexma": __version__,
        "packages": packages,
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def describe_file(file: Path) -> dict[str, Any]:
    """Name and SHA-256, so that a number can be traced to its data."""
    with file.open("rb") as opened:
        return {"file": file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}

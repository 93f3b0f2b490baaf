"""The reference pages, made from the code: `python -m docs.reference` writes them anew.

`tests/test_docs.py` fails when a page on disk is not what the code says.
"""

from __future__ import annotations

import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mexma.artifact import open_artifact
from mexma.encoder import tokenizer_of
from service.metrics import Metrics
from service.settings import DEFAULT_MODEL, Settings

HERE = Path(__file__).resolve().parent


def settings_page() -> str:
    """`docs/settings.md`: every setting with its default and its story."""
    lines = [
        "# Settings",
        "",
        "Environment variables, read once at start. A name that begins with `MEXMA_` and is not",
        "listed here stops the start, so that a misspelt setting is not silently ignored.",
    ]
    for name, field in Settings.model_fields.items():
        default = "models/default" if field.default == DEFAULT_MODEL else str(field.default)
        default = "(empty)" if default in ("", "()") else default
        line = f"Default: `{default}`"
        if values := literal_values(field.annotation):
            line += " (one of " + ", ".join(f"`{value}`" for value in values) + ")"
        lines += ["", f"## `MEXMA_{name.upper()}`", "", line, ""]
        lines += [str(field.description)]
    return "\n".join(lines) + "\n"


def literal_values(annotation: Any) -> tuple[Any, ...]:
    """What a value of this type may be, where that is a list: a Literal, an Enum, or one of them and
    None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(member.value for member in annotation)
    return tuple(value for part in get_args(annotation) for value in literal_values(part))


def metrics_page() -> str:
    """`docs/metrics.md`: every metric with its type and labels."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics`, in Prometheus's text format. Times are in seconds, sizes in tokens or",
        "texts. Counters carry the ending `_total`; histograms `_bucket`, `_sum` and `_count`.",
        "",
        "| name | type | labels | what |",
        "|---|---|---|---|",
    ]
    collectors = sorted(vars(Metrics()).values(), key=lambda c: getattr(c, "_name", ""))
    seen = set()  # a metric may be held under several names, one for each value of its label
    for metric in collectors:
        if hasattr(metric, "_name") and metric._name not in seen:
            seen.add(metric._name)
            name = metric._name + ("_total" if metric._type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            lines.append(f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |")
    lines += [
        "",
        "Beside these, Prometheus's usual ones of a process: `process_resident_memory_bytes`,",
        "`process_virtual_memory_bytes`, `process_cpu_seconds_total`, `process_start_time_seconds`,",
        "`process_open_fds` and `process_max_fds`.",
    ]
    return "\n".join(lines) + "\n"


def openapi_page() -> str:
    """`docs/openapi.json`: the OpenAPI document of the service."""
    from service.app import create_app
    from service.store.local import LocalStore
    from service.workers.front import TokenizingEncoder

    artifact = open_artifact(DEFAULT_MODEL)
    encoder = TokenizingEncoder(artifact.manifest, tokenizer_of(artifact))
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        app = create_app(Settings(), encoder=encoder, store=store)
        store.close()
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "openapi.json": openapi_page,
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (HERE / file).write_text(page(), encoding="utf-8")
        print(f"docs/{file}")

"""Routes by the names under which requests are counted and logged: their paths as declared.

A table of its own, since many requests are answered where no route has been looked up: refused at
the border (no key, a body too large), taken by a shortcut, or by an HTTP worker, which has no routes.
A test compares it with the application's.
"""

from __future__ import annotations

import re

UNMATCHED = "unmatched"
FIXED = frozenset({
    "/v1/embeddings", "/v1/align", "/v1/mine", "/v1/models", "/v1/models/reload",
    "/v1/models/rollback", "/v1/collections", "/embed", "/embed_all", "/similarity", "/tokenize",
    "/info", "/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/",
})  # fmt: skip
COLLECTION = "/v1/collections/{name}"
# A parameter ends at the next slash, `:path` and `:anything` take the rest.
FILLED = (
    "/v1/models/{model:path}",
    COLLECTION,
    f"{COLLECTION}/documents",
    f"{COLLECTION}/documents/count",
    f"{COLLECTION}/documents/scroll",
    f"{COLLECTION}/documents/{{document_id:anything}}",
    f"{COLLECTION}/search",
    f"{COLLECTION}/snapshots",
    f"{COLLECTION}/snapshots/{{snapshot_id}}/restore",
    f"{COLLECTION}/snapshots/{{snapshot_id}}",
    f"{COLLECTION}/migration",
    f"{COLLECTION}/migration/cut-over",
    f"{COLLECTION}/migration/rollback",
    f"{COLLECTION}/migration/retire",
)


def _pattern(declared: str) -> re.Pattern[str]:
    rest = re.sub(r"\{\w+:(path|anything)\}", ".*", declared)
    return re.compile(rest.replace("{", "(?P<").replace("}", ">[^/]+)"), re.DOTALL)


PATTERNS = tuple((_pattern(declared), declared) for declared in FILLED)


def name_of(path: str) -> str:
    """The route that a request for `path` would come to; nothing that a caller chose is in it."""
    if path in FIXED:
        return path
    return next((declared for p, declared in PATTERNS if p.fullmatch(path)), UNMATCHED)

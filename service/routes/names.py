"""Routes by the names under which requests are counted and logged: their paths as declared.

A table of its own, since many requests are answered where no route has been looked up: refused at
the border (no key, a body too large), taken by a shortcut, or by an HTTP worker, which has no routes.
A test compares it with the application's.
"""

from __future__ import annotations

import re

UNMATCHED = "unmatched"
COLLECTION = "/v1/collections/{name}"
DOCUMENTS, SNAPSHOTS, MIGRATION = (
    f"{COLLECTION}/{part}" for part in ("documents", "snapshots", "migration")
)
# A parameter ends at the next slash, `:path` and `:anything` take the rest. The first that fits is meant.
METHODS = {
    path: frozenset(methods.split())
    for path, methods in {
        "/": "GET POST",
        "/docs": "GET",
        "/openapi.json": "GET",
        "/metrics": "GET",
        "/info": "GET",
        "/health": "GET",
        "/health/live": "GET",
        "/health/ready": "GET",
        "/embed": "POST",
        "/embed_all": "POST",
        "/similarity": "POST",
        "/tokenize": "POST",
        "/v1/embeddings": "POST",
        "/v1/align": "POST",
        "/v1/mine": "POST",
        "/v1/models": "GET",
        "/v1/models/reload": "GET POST",
        "/v1/models/rollback": "POST",
        "/v1/models/{model:path}": "GET",
        "/v1/collections": "GET",
        COLLECTION: "GET PUT DELETE",
        DOCUMENTS: "POST DELETE",
        f"{DOCUMENTS}/count": "POST",
        f"{DOCUMENTS}/scroll": "POST",
        f"{DOCUMENTS}/{{document_id:anything}}": "GET DELETE",
        f"{COLLECTION}/search": "POST",
        SNAPSHOTS: "GET POST",
        f"{SNAPSHOTS}/{{snapshot_id}}/restore": "POST",
        f"{SNAPSHOTS}/{{snapshot_id}}": "DELETE",
        MIGRATION: "GET POST DELETE",
        f"{MIGRATION}/cut-over": "POST",
        f"{MIGRATION}/rollback": "POST",
        f"{MIGRATION}/retire": "POST",
    }.items()
}
"""What is answered at a route's path, HEAD where GET is."""
FIXED = frozenset(path for path in METHODS if "{" not in path)
FILLED = tuple(path for path in METHODS if "{" in path)


def _pattern(declared: str) -> re.Pattern[str]:
    rest = re.sub(r"\{\w+:(path|anything)\}", ".*", declared)
    return re.compile(rest.replace("{", "(?P<").replace("}", ">[^/]+)"), re.DOTALL)


PATTERNS = tuple((_pattern(declared), declared) for declared in FILLED)


def name_of(path: str) -> str:
    """The route that a request for `path` would come to; nothing that a caller chose is in it."""
    if path in FIXED:
        return path
    return next((declared for p, declared in PATTERNS if p.fullmatch(path)), UNMATCHED)


def methods_of(path: str) -> frozenset[str]:
    """What a request for `path` may ask; none where there is no route."""
    return METHODS.get(name_of(path), frozenset())

"""How it is said that traffic should go elsewhere, by whichever process or layer knows it.

`/health/ready` says why, in a word for machines; `/health` is the same probe to the contract of
text-embeddings-inference.
"""

from __future__ import annotations

import orjson
from fastapi.responses import Response

from service.schemas import Ready

PATH, TEI_PATH = "/health/ready", "/health"
PATHS = frozenset({PATH, TEI_PATH})
RETRY_AFTER_S = 5


def not_ready(path: str, *, reason: str, detail: str | None) -> Response:
    """503, in the shape of the probe at `path`."""
    if path == TEI_PATH:
        said = f"unhealthy: {reason}" + (f", {detail}" if detail else "")
        body = {"error": said, "error_type": "Unhealthy"}
    else:
        body = Ready(status="not_ready", reason=reason, detail=detail).model_dump()
    return Response(
        orjson.dumps(body),
        503,
        headers={"retry-after": str(RETRY_AFTER_S)},
        media_type="application/json",
    )

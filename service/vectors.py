"""Response bytes straight from the vector buffer, never through a response model.

Building Python lists of floats costs many times the serialisation itself, so JSON is
written by orjson from numpy rows, and base64 from the buffer.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from mexma.errors import InputError
from service.engine.embedder import Embedded, Receipt
from service.http_errors import snake
from service.schemas import OutputDtype

NPY = "application/x-npy"

# Written as JSON within half a millisecond; four times as many take ten times as long.
NUMBERS_AT_ONCE = 2**14


def shorten(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The leading `dimensions` components of each row `[n, dim]`, normalised again."""
    dim = vectors.shape[1]
    if dimensions is None or dimensions == dim:
        return vectors
    if dimensions > dim:
        raise InputError(
            f"dimensions is {dimensions}, but this model's vectors have {dim}", limit=dim
        )
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.ascontiguousarray(cut / np.where(norms > 0, norms, 1))


def check_dtype(dtype: OutputDtype, dimensions: int) -> None:
    """Raises InputError where vectors of so many dimensions cannot have this type."""
    if dtype == "ubinary" and dimensions % 8:
        raise InputError(
            f"output_dtype ubinary packs 8 dimensions into a byte; expected a multiple of 8, found "
            f"{dimensions}"
        )


def as_dtype(vectors: NDArray[np.float32], dtype: OutputDtype) -> NDArray[Any]:
    """Rows float32 `[n, dim]` of length 1 as another type.

    int8: int8 `[n, dim]`, in proportion to each row's largest component, which is 127 or -127.
    ubinary: uint8 `[n, dim / 8]`, a bit for each component that is above 0, the first one in a
    byte's highest bit.
    """
    if dtype == "ubinary":
        return np.packbits(vectors > 0, axis=1)
    if dtype == "int8":
        most = np.abs(vectors).max(axis=1, keepdims=True)
        return np.rint(vectors * (127 / np.where(most > 0, most, 1))).astype(np.int8)
    return vectors


def scales(vectors: NDArray[np.int8]) -> NDArray[np.float64]:
    """By what rows of integers `[n, dim]` are multiplied to be vectors of length 1, `[n]`.

    One over their length: so it is known without being sent, where there is no place for it.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return 1 / np.where(lengths > 0, lengths, 1)


def to_base64(vector: NDArray[Any]) -> str:
    """Base64 of the components: of float32 little-endian, as OpenAI's clients expect it, or of bytes."""
    little = "<f4" if vector.dtype == np.float32 else vector.dtype
    return base64.b64encode(np.ascontiguousarray(vector, little).data).decode("ascii")


def timing_headers(embedded: Receipt, fingerprint: str) -> dict[str, str]:
    """Where the time went, and which encoder the vectors come from."""
    return {
        "x-encoder-fingerprint": fingerprint,
        "server-timing": ", ".join(
            f"{stage};dur={seconds * 1000:.2f}"
            for stage, seconds in (
                ("tokenize", embedded.tokenize_s),
                ("queue", embedded.queue_s),
                ("inference", embedded.inference_s),
            )
        ),
    }


def truncations(embedded: Receipt) -> dict[int, dict[str, Any]]:
    """The receipts of the items that were cut."""
    return {
        i: {"tokens_seen": t.seen, "tokens_used": len(t), "cut_at": t.cut_at}
        for i, t in enumerate(embedded.tokens)
        if t is not None and t.seen > len(t)
    }


def error_of(error: Exception) -> dict[str, str]:
    """Of an item among others that are answered."""
    return {"message": str(error), "code": snake(type(error).__name__)}


def error_headers(embedded: Embedded) -> dict[str, str]:
    """What is wrong with which items, for answers whose body has no place for it: the first ten, since
    each names its reason, and how many there are."""
    if not embedded.errors:
        return {}
    first = sorted(embedded.errors.items())[:10]
    return {
        # Names of languages and texts are none of a header's letters: as JSON's escapes they are.
        "x-item-errors": json.dumps([{"index": i, **error_of(error)} for i, error in first]),
        "x-failed-items": str(len(embedded.errors)),
    }


def without_failed(embedded: Embedded, vectors: NDArray[Any]) -> NDArray[Any]:
    """A matrix `[n, dim]` for answers whose body has no place for errors: rows of floats that are none are
    NaN, which no index takes for a vector; rows of integers are zeros."""
    if embedded.errors and vectors.dtype == np.float32:
        vectors = vectors.copy()
        vectors[list(embedded.errors)] = np.nan
    return vectors


def truncation_headers(embedded: Receipt) -> dict[str, str]:
    """The receipts as headers, for answers whose body has no place for them.

    Headers are bounded: the first hundred receipts, and how many there are.
    """
    if not (cut := truncations(embedded)):
        return {}
    receipts = [{"index": i, **receipt} for i, receipt in list(cut.items())[:100]]
    return {
        "x-truncation": orjson.dumps(receipts).decode(),
        "x-truncated-items": str(len(cut)),
    }


def wants_npy(request: Request) -> bool:
    return NPY in request.headers.get("accept", "")


def npy_response(vectors: NDArray[Any], headers: dict[str, str]) -> Response:
    """The matrix, a row for each item, as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY, headers=headers)


def json_response(content: Any, headers: dict[str, str]) -> Response:
    """JSON in which numpy rows may stand for lists of numbers."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS),
        media_type="application/json",
        headers=headers,
    )


class ResponseInParts(Response):
    """A response whose body is sent part by part, each when the client has taken most of those before. One
    body of 40 MB is copied twice on its way to the socket, and the event loop does nothing else for
    100 ms."""

    def __init__(self, parts: list[bytes], headers: dict[str, str], media_type: str):
        length = {"content-length": str(sum(map(len, parts)))}
        super().__init__(headers=headers | length, media_type=media_type)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # what is written in one turn of the loop is joined
        await send({"type": "http.response.body", "body": b""})


async def states_response(
    states: Sequence[NDArray[np.float32]], headers: dict[str, str]
) -> Response:
    """JSON of matrices `[length, hidden]`, written and sent in parts between which the event loop turns:
    all of a large one at once would keep every other request waiting."""
    parts: list[bytes] = []
    for one in states:
        before = b"],[" if parts else b"[["
        rows = max(1, NUMBERS_AT_ONCE // one.shape[1])
        for first in range(0, len(one), rows):
            block = np.ascontiguousarray(one[first : first + rows])
            written = orjson.dumps(block, option=orjson.OPT_SERIALIZE_NUMPY)
            parts.append(before + written[1:-1])
            before = b","
            await asyncio.sleep(0)
    parts.append(b"]]")
    return ResponseInParts(parts, headers, "application/json")


def openai_body(
    embedded: Embedded, vectors: NDArray[Any], encoding_format: str, model: str
) -> dict[str, Any]:
    """The body of `/v1/embeddings` (see `schemas.EmbeddingResponse`). vectors: of any type of `as_dtype`."""
    cut = truncations(embedded)
    by = scales(vectors).tolist() if vectors.dtype == np.int8 else None
    data: list[dict[str, Any]] = []
    for i, vector in enumerate(vectors):
        item: dict[str, Any] = {"object": "embedding", "index": i}
        if error := embedded.errors.get(i):
            item["embedding"] = None
            item["error"] = error_of(error)
        else:
            item["embedding"] = to_base64(vector) if encoding_format == "base64" else vector
            if by is not None:
                item["scale"] = by[i]
        if i in cut:
            item["truncation"] = cut[i]
        data.append(item)
    tokens = embedded.token_count
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }

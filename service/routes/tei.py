"""`POST /embed` (and `/`) and `GET /info` to the contract of text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from mexma import __version__
from mexma.text import Side
from service.caller import Caller, caller
from service.engine.embedder import Embedder
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented
from service.json_body import JsonRoute
from service.middleware import unless_gone
from service.schemas import TeiEmbedRequest, TeiInfo, TeiModelType, TeiPooling
from service.state import State
from service.vectors import (
    NPY,
    json_response,
    npy_response,
    shorten,
    timing_headers,
    truncation_headers,
    wants_npy,
)

# That contract's names for poolings.
POOLING_NAMES = {"first_token": "cls", "mean": "mean"}
DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8", "compact": "float32"}


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["text-embeddings-inference"])
    settings = state.settings

    def default() -> Embedder:
        return state.encoders.default

    declared: dict[str, Any] = {
        "response_model": list[list[float]],
        "responses": {
            200: {
                "description": "One vector per input. Cut inputs are reported in the header "
                "`x-truncation`. With `Accept: application/x-npy`, a .npy file.",
                "content": {NPY: {"schema": {"type": "string", "format": "binary"}}},
            },
            **documented(*BODY_ERRORS, *INFERENCE_ERRORS, tei=True),
        },
    }

    @routes.post("/", include_in_schema=False, **declared)  # as the page there is not
    @routes.post("/embed", **declared)
    async def embed(
        body: TeiEmbedRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Embed text or token ids. Clients that are given the service's address and no route, such as
        `huggingface_hub`, find it at `/`, too."""
        return await unless_gone(request, answer(default, body, asks, wants_npy(request)))

    @routes.get("/info", response_model=TeiInfo)
    async def info() -> TeiInfo:
        """What is served, and its limits."""
        embedder = default()
        encoder = embedder.encoder
        manifest = encoder.manifest
        return TeiInfo(
            model_id=manifest.name,
            model_sha=encoder.fingerprint,
            model_dtype=DTYPES[manifest.precision],
            model_type=TeiModelType(embedding=TeiPooling(pooling=POOLING_NAMES[manifest.pooling])),
            max_concurrent_requests=settings.max_queue_tokens,
            max_input_length=manifest.max_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_requests=settings.max_batch_items,
            max_client_batch_size=settings.max_request_items,
            auto_truncate=settings.auto_truncate,
            tokenization_workers=embedder.tokenizer_threads,
            version=__version__,
        )

    return routes


async def answer(
    default: Callable[[], Embedder], body: TeiEmbedRequest, asks: Caller, npy: bool
) -> Response:
    """The response to a sound request. default: whose vectors it gets. Raises what `Embedder.embed`
    does."""
    embedder = default()
    if isinstance(body.inputs[0], str):
        side: Side = "left" if body.truncation_direction.lower() == "left" else "right"
        embedded = await embedder.embed(body.inputs, truncate=body.truncate, side=side, caller=asks)
    else:
        embedded = await embedder.embed_ids(body.inputs, truncate=body.truncate, caller=asks)
    vectors = shorten(embedded.vectors, body.dimensions)
    headers = timing_headers(embedded, embedder.encoder.fingerprint) | truncation_headers(embedded)
    return npy_response(vectors, headers) if npy else json_response(list(vectors), headers)

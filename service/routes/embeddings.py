"""`POST /v1/embeddings` and `GET /v1/models` to OpenAI's contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from mexma.encoder import Encoder
from mexma.errors import ModelNotFound
from service.caller import Caller, caller
from service.departures import unless_gone
from service.engine.embedder import Embedded, Embedder
from service.engine.encoders import Role
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented
from service.json_body import JsonRoute
from service.schemas import EmbeddingRequest, EmbeddingResponse, ModelCard, ModelList
from service.state import State
from service.vectors import (
    NPY,
    as_dtype,
    check_dtype,
    error_headers,
    json_response,
    npy_response,
    openai_body,
    shorten,
    timing_headers,
    truncation_headers,
    wants_npy,
    without_failed,
)


def router(state: State) -> APIRouter:
    """The routes, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["embeddings"])
    choose = state.encoders.for_request

    @routes.post(
        "/v1/embeddings",
        response_model=EmbeddingResponse,
        responses={
            200: {
                "description": "One vector per item. With `Accept: application/x-npy`, the "
                "matrix as a .npy file.",
                "content": {NPY: {"schema": {"type": "string", "format": "binary"}}},
            },
            **documented(*BODY_ERRORS, *INFERENCE_ERRORS),
        },
    )
    async def create_embeddings(
        body: EmbeddingRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Embed text or token ids."""
        return await unless_gone(request, answer(choose, body, asks, wants_npy(request)))

    @routes.get("/v1/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """The models that are served, each with its card: the default first, and last those that are
        kept after a reload."""
        return ModelList(data=[_card(e.encoder, state.encoders.role(e)) for e in state.encoders])

    @routes.get("/v1/models/{model:path}", response_model=ModelCard, responses=documented(404, 422))
    async def retrieve_model(model: str) -> ModelCard:
        """One that is served, by its name or fingerprint."""
        found = state.encoders.named(model)
        if found is None:
            raise ModelNotFound(f"model {model[:80]!r} is not served; GET /v1/models lists what is")
        return _card(found.encoder, state.encoders.role(found))

    return routes


async def answer(
    choose: Callable[[str | None], Embedder], body: EmbeddingRequest, asks: Caller, npy: bool
) -> Response:
    """The response to a sound request. choose: whose vectors a model's name means. Raises what
    `Embedder.embed` does."""
    embedder = choose(body.model)
    encoder = embedder.encoder
    check_dtype(body.output_dtype, body.dimensions or encoder.manifest.dim)
    embed: Any = embedder.embed if isinstance(body.input[0], str) else embedder.embed_ids
    embedded: Embedded = await embed(
        body.input, truncate=body.truncate, partial=body.partial, caller=asks
    )
    vectors = as_dtype(shorten(embedded.vectors, body.dimensions), body.output_dtype)
    headers = timing_headers(embedded, encoder.fingerprint)
    if npy:
        headers |= truncation_headers(embedded) | error_headers(embedded)
        return npy_response(without_failed(embedded, vectors), headers)
    return json_response(
        openai_body(embedded, vectors, body.encoding_format, encoder.manifest.name), headers
    )


def _card(encoder: Encoder, role: Role) -> ModelCard:
    manifest = encoder.manifest
    return ModelCard(
        id=manifest.name,
        role=role,
        fingerprint=manifest.fingerprint,
        dimensions=manifest.dim,
        max_tokens=manifest.max_tokens,
        pooling=manifest.pooling,
        precision=manifest.precision,
        engine=encoder.engine,
        prefix=manifest.prefix,
        source=manifest.source,
        quality=_means(manifest.quality),
    )


def _means(quality: dict[str, Any]) -> dict[str, Any]:
    """The measurements without their tables per language; the manifest has those."""
    return {
        name: {k: v for k, v in measured.items() if k != "languages"}
        for name, measured in quality.items()
        if isinstance(measured, dict)
    }

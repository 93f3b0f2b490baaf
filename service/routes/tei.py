"""`POST /embed`, `/embed_all`, `/similarity`, `/tokenize` (and `/`) and `GET /info` to the contract of
text-embeddings-inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError

from mexma import __version__
from mexma.text import Side
from service.caller import Caller, caller
from service.departures import unless_gone
from service.engine.embedder import Embedder
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented
from service.json_body import JsonRoute
from service.state import State
from service.tei_schemas import (
    TeiEmbedAllRequest,
    TeiEmbedRequest,
    TeiInfo,
    TeiModelType,
    TeiParameters,
    TeiPooling,
    TeiSimilarityRequest,
    TeiToken,
    TeiTokenizeRequest,
)
from service.vectors import (
    NPY,
    as_dtype,
    check_dtype,
    json_response,
    npy_response,
    shorten,
    states_response,
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

    @routes.post("/embed", **declared)
    async def embed(
        body: TeiEmbedRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Embed text or token ids. Clients that are given the service's address and no route, such as
        `huggingface_hub`, find it at `/`, too."""
        return await unless_gone(request, answer(default, body, asks, wants_npy(request)))

    @routes.post(
        "/embed_all",
        response_model=list[list[list[float]]],
        responses={
            200: {
                "description": "Per input one vector for each of its tokens, as `/tokenize` lists them: the "
                "encoder's last hidden states, neither pooled nor normalised. Cut inputs are reported in "
                "the header `x-truncation`."
            },
            **documented(*BODY_ERRORS, *INFERENCE_ERRORS, 501, tei=True),
        },
    )
    async def embed_all(
        body: TeiEmbedAllRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """The states of the tokens of texts or token ids. 501 where the model was exported without them."""
        return await unless_gone(request, states_of(default(), body, asks))

    @routes.post(
        "/similarity",
        response_model=list[float],
        responses=documented(*BODY_ERRORS, *INFERENCE_ERRORS, tei=True),
    )
    async def similarity(
        body: TeiSimilarityRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """The cosine of one text to each of others, in any languages. Cut texts are reported in the
        header `x-truncation`, where the source is 0 and the others follow."""
        return await unless_gone(request, similarities(default(), body, asks))

    @routes.post(
        "/tokenize",
        response_model=list[list[TeiToken]],
        responses=documented(*BODY_ERRORS, tei=True),
    )
    async def tokenize(body: TeiTokenizeRequest) -> Response:
        """The tokens of texts, as they are counted and embedded, the encoder's prefix included."""
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        found = await default().pieces(texts, special=body.add_special_tokens)
        return json_response([[asdict(piece) for piece in pieces] for pieces in found], {})

    @routes.post("/", include_in_schema=False)  # as the page there is not
    async def at_the_address(
        body: dict[str, Any], request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """What a client posts that knows the address only: which route it means shows in what it sends."""
        pair = isinstance(body.get("inputs"), dict)
        try:
            work = (
                similarities(default(), TeiSimilarityRequest.model_validate(body), asks)
                if pair
                else answer(default, TeiEmbedRequest.model_validate(body), asks, wants_npy(request))
            )
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        return await unless_gone(request, work)

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
            max_concurrent_requests=settings.max_connections,
            max_input_length=manifest.max_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_requests=settings.max_batch_items,
            max_client_batch_size=settings.max_request_items,
            auto_truncate=settings.auto_truncate,
            tokenization_workers=embedder.tokenizer_threads,
            version=__version__,
        )

    return routes


async def similarities(embedder: Embedder, body: TeiSimilarityRequest, asks: Caller) -> Response:
    """The response to a sound request. Raises what `Embedder.embed` does."""
    how = body.parameters or TeiParameters()
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    embedded = await embedder.embed(
        texts, truncate=how.truncate, side=_side(how.truncation_direction), caller=asks
    )
    headers = timing_headers(embedded, embedder.encoder.fingerprint) | truncation_headers(embedded)
    return json_response(embedded.vectors[1:] @ embedded.vectors[0], headers)


async def states_of(embedder: Embedder, body: TeiEmbedAllRequest, asks: Caller) -> Response:
    """The response to a sound request. Raises what `Embedder.token_states` does."""
    side = _side(body.truncation_direction)
    asked = embedder.token_states(body.inputs, truncate=body.truncate, side=side, caller=asks)
    async with asked as found:
        headers = timing_headers(found, embedder.encoder.fingerprint) | truncation_headers(found)
        return await states_response(found.states, headers)


def _side(direction: str) -> Side:
    return "left" if direction.lower() == "left" else "right"


async def answer(
    default: Callable[[], Embedder], body: TeiEmbedRequest, asks: Caller, npy: bool
) -> Response:
    """The response to a sound request. default: whose vectors it gets. Raises what `Embedder.embed`
    does."""
    embedder = default()
    check_dtype(body.output_dtype, body.dimensions or embedder.encoder.manifest.dim)
    if isinstance(body.inputs[0], str):
        side = _side(body.truncation_direction)
        embedded = await embedder.embed(body.inputs, truncate=body.truncate, side=side, caller=asks)
    else:
        embedded = await embedder.embed_ids(body.inputs, truncate=body.truncate, caller=asks)
    vectors = as_dtype(shorten(embedded.vectors, body.dimensions), body.output_dtype)
    headers = timing_headers(embedded, embedder.encoder.fingerprint) | truncation_headers(embedded)
    return npy_response(vectors, headers) if npy else json_response(list(vectors), headers)

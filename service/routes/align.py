"""`POST /v1/align`: which words of two texts say the same.

A word's vector is the mean of the states of its tokens (`mexma.words` says what a word is), and words are
paired by SimAlign's methods (`mexma.alignment`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from mexma.alignment import METHODS, similarities, word_states
from mexma.errors import EngineError, InputError, TooManyItems
from mexma.text import LocatedTokens
from mexma.words import Word, words_of
from service.align_schemas import AlignRequest, AlignResponse
from service.caller import Caller, caller
from service.departures import unless_gone
from service.engine.embedder import Embedder, TokenStates
from service.http_errors import BODY_ERRORS, INFERENCE_ERRORS, documented, for_exception
from service.json_body import JsonRoute
from service.sides import placed, renamed
from service.state import State
from service.vectors import json_response, timing_headers, truncations

# Of a pair's words, each with each: 32 MB of similarities, of which there are some copies.
MOST_CELLS = 2**22
DECIMALS = 4


def router(state: State) -> APIRouter:
    """The route, bound to one app's state."""
    routes = APIRouter(route_class=JsonRoute, tags=["alignment"])

    @routes.post(
        "/v1/align",
        response_model=AlignResponse,
        responses=documented(*BODY_ERRORS, *INFERENCE_ERRORS, 501),
    )
    async def align(
        body: AlignRequest, request: Request, asks: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Which words of a text and of its translation say the same. Words are divided by white space and
        signs; in scripts without spaces they are pieces of the tokenizer. 501 where the model was
        exported without token states."""
        embedder = state.encoders.for_request(body.model)
        try:
            return await unless_gone(request, answer(embedder, body, asks))
        except (InputError, EngineError) as error:
            if error.item is None:
                raise
            side, place = placed(error.item, len(body.source))
            return for_exception(request.url.path, renamed(error, side, place), param=side)

    return routes


async def answer(embedder: Embedder, body: AlignRequest, asks: Caller) -> Response:
    """The response to a sound request. Raises what `Embedder.token_states` does."""
    count, limit = len(body.source), embedder.settings.max_request_items
    if 2 * count > limit:
        raise TooManyItems(
            f"{count} pairs are {2 * count} texts; the limit is {limit} texts", limit=limit
        )
    texts = [*body.source, *body.target]
    asked = embedder.token_states(texts, truncate=body.truncate, locate=True, caller=asks)
    async with asked as found:
        started = time.monotonic()
        alignments = await asyncio.to_thread(_alignments, texts, found, body.method)
        align_s = time.monotonic() - started
    fingerprint = embedder.encoder.fingerprint
    headers = timing_headers(found, fingerprint)
    headers["server-timing"] += f", align;dur={align_s * 1000:.2f}"
    tokens = found.token_count
    content = {
        "alignments": alignments,
        "model": embedder.encoder.manifest.name,
        "fingerprint": fingerprint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_response(content, headers)


def _alignments(texts: Sequence[str], found: TokenStates, method: str) -> list[dict[str, Any]]:
    """Of the first half of the texts with the second."""
    count, cut = len(texts) // 2, truncations(found)
    words = [_words(text, t) for text, t in zip(texts, found.tokens, strict=True)]
    vectors = [
        word_states(states, [word.tokens for word in of])
        for states, of in zip(found.states, words, strict=True)
    ]
    out = []
    for i, j in zip(range(count), range(count, 2 * count), strict=True):
        if (cells := len(words[i]) * len(words[j])) > MOST_CELLS:
            raise InputError(
                f"item {i} has {len(words[i])} words and its translation {len(words[j])}; the limit is "
                f"{MOST_CELLS} for their product, found {cells}",
                item=i,
                limit=MOST_CELLS,
            )
        one: dict[str, Any] = {
            "source": _described(texts[i], words[i]),
            "target": _described(texts[j], words[j]),
            "pairs": _pairs(vectors[i], vectors[j], method),
        }
        if i in cut or j in cut:
            one["truncation"] = {"source": cut.get(i), "target": cut.get(j)}
        out.append(one)
    return out


def _words(text: str, tokens: Any) -> list[Word]:
    located: LocatedTokens = tokens
    return words_of(text, located.spans)


def _described(text: str, words: Sequence[Word]) -> list[dict[str, Any]]:
    return [{"text": text[w.start : w.end], "start": w.start, "end": w.end} for w in words]


def _pairs(
    source: NDArray[np.float32], target: NDArray[np.float32], method: str
) -> list[dict[str, Any]]:
    """By the words of the source, and of the target among them."""
    similarity = similarities(source, target)
    places = zip(*np.nonzero(METHODS[method](similarity)), strict=True)
    return [
        {
            "source": int(i),
            "target": int(j),
            "score": round(2 * float(similarity[i, j]) - 1, DECIMALS),
        }
        for i, j in places
    ]

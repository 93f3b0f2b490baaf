"""What `POST /v1/mine` takes and answers; the answer is described here but never built from these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mexma.neighbours import K
from service.schemas import TRUNCATE, Body, ItemError, Truncation, Usage, Whole

# Not `Text`: with `partial` an empty one is no reason to refuse the others.
Sentences = Annotated[list[str], Field(min_length=1, fail_fast=True)]


class MineRequest(Body):
    """Two lists of sentences in any languages; which of them translate each other is asked."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "source": ["Ich habe zwei Katzen.", "Der Zug fährt um neun."],
                    "target": ["The train leaves at nine.", "I have two cats.", "Good night!"],
                }
            ]
        },
    )

    source: Sentences
    target: Sentences
    score: Literal["margin", "cosine"] = Field(
        "margin",
        description="What pairs are found and ordered by. `margin` divides the cosine by how near both "
        "sentences are to their own `k` nearest on the other side, so that one that is near to "
        "everything does not win; with a few sentences it says little, and cosine is better.",
    )
    k: Whole = Field(
        K,
        ge=1,
        le=1000,
        description="Neighbours that a margin looks at; where there are fewer, all of them.",
    )
    method: Literal["intersection", "greedy", "union"] = Field(
        "intersection",
        description="Each sentence chooses its best match. `intersection`: pairs that choose each other. "
        "`greedy`: all choices from the best down, each sentence once. `union`: all choices. Each holds "
        "the ones before.",
    )
    score_threshold: float | None = Field(
        None,
        description="Drop pairs that score lower. What is right depends on the encoder and the texts.",
    )
    model: str | None = Field(None, description="As in `POST /v1/embeddings`.")
    truncate: bool | None = Field(None, description=TRUNCATE)
    partial: bool = Field(
        False,
        description="Mine the good sentences when others are bad, which `source_errors` and "
        "`target_errors` then say. Otherwise one bad sentence fails the request.",
    )


class MinedPair(BaseModel):
    """source, target: places in the two lists. score: margin or cosine, whichever was asked for."""

    source: int
    target: int
    score: float
    cosine: float


class MineResponse(BaseModel):
    pairs: list[MinedPair] = Field(
        description="Best score first; equal scores in the order of the lists. Of equal sentences of one "
        "side only the first is in any."
    )
    source_truncations: dict[int, Truncation] = Field(
        description="Of the sentences that were cut, by place."
    )
    target_truncations: dict[int, Truncation]
    source_errors: dict[int, ItemError] = Field(
        description="Of the bad sentences with `partial`, by place."
    )
    target_errors: dict[int, ItemError]
    model: str
    usage: Usage
    fingerprint: str

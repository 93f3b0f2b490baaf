"""What text-embeddings-inference's clients send and get; unknown fields are ignored, as it does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import OUTPUT_DTYPE, WHOLE_BYTES, Dimensions, Input, OutputDtype, Text

Direction = Literal["Right", "Left", "right", "left"]
NoPrompt = Annotated[None, Field(description="Only null: the encoder has one prefix.")]


class TeiEmbedRequest(BaseModel):
    """text-embeddings-inference's `POST /embed`, and output_dtype."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "examples": [{"inputs": ["Good morning", "Hyvää huomenta"]}],
            **WHOLE_BYTES,
        },
    )

    inputs: Input
    normalize: bool = Field(
        True,
        description="Vectors have length 1 either way: they are normalised inside the model's graph.",
    )
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: NoPrompt = None
    dimensions: Dimensions | None = None
    output_dtype: OutputDtype = Field("float", description=OUTPUT_DTYPE)


class TeiEmbedAllRequest(BaseModel):
    """text-embeddings-inference's `POST /embed_all`."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={"examples": [{"inputs": ["Good morning", "Hyvää huomenta"]}]},
    )

    inputs: Input
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: NoPrompt = None


class TeiPooling(BaseModel):
    pooling: str


class TeiModelType(BaseModel):
    embedding: TeiPooling


class TeiInfo(BaseModel):
    """text-embeddings-inference's `GET /info`."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str
    model_dtype: str
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


class TeiPair(BaseModel):
    """One text, and those it is compared with."""

    model_config = ConfigDict(extra="ignore", strict=True)

    source_sentence: Text
    sentences: list[Text] = Field(min_length=1, fail_fast=True)


class TeiParameters(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: NoPrompt = None


class TeiSimilarityRequest(BaseModel):
    """text-embeddings-inference's `POST /similarity`."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "inputs": {
                        "source_sentence": "Good morning",
                        "sentences": ["Hyvää huomenta", "Hyvää yötä"],
                    }
                }
            ]
        },
    )

    inputs: TeiPair
    parameters: TeiParameters | None = None


class TeiTokenizeRequest(BaseModel):
    """text-embeddings-inference's `POST /tokenize`."""

    model_config = ConfigDict(
        extra="ignore",
        strict=True,
        json_schema_extra={"examples": [{"inputs": ["Good morning"]}]},
    )

    inputs: Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    add_special_tokens: bool = True
    prompt_name: NoPrompt = None


class TeiToken(BaseModel):
    """start, stop: in characters of the text; null for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None

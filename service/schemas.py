"""What requests and answers look like; the OpenAPI document is made from these.

Those for collections are in collection_schemas.py, text-embeddings-inference's in tei_schemas.py.

Answers that carry vectors are described here but never built from these classes: their
bytes come straight from the vector buffer (`service/vectors.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    WithJsonSchema,
    model_validator,
)

_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}


def _check_input(value: Any) -> list[Any]:
    """Bring OpenAI's four input forms to two: texts, or lists of token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(
            f"expected text, a list of texts, token ids or lists of token ids, found {_kind(value)}"
        )
    if not value:
        raise ValueError("expected at least one item, found an empty list")
    if _is_id(_whole(value[0])):
        value = [value]
    items: list[Any] = value
    wants_text = isinstance(value[0], str)
    for item, element in enumerate(value):
        if wants_text:
            if not isinstance(element, str):
                raise ValueError(f"item {item} must be text like item 0, found {_kind(element)}")
        elif not isinstance(element, list):
            raise ValueError(f"item {item} must be text or token ids, found {_kind(element)}")
        elif not element:
            raise ValueError(f"item {item} is an empty list; every item needs token ids")
        else:
            _check_ids(item, element)
    return items


def text_or_texts(value: Any) -> list[str]:
    """Bring a text, or a list of texts, to the latter."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"expected text or a list of texts, found {_kind(value)}")
    if not value:
        raise ValueError("expected at least one item, found an empty list")
    for item, element in enumerate(value):
        if not isinstance(element, str):
            raise ValueError(f"item {item} must be text, found {_kind(element)}")
    return value


def _check_ids(item: int, ids: list[Any]) -> None:
    for position, token in enumerate(ids):
        if _is_id(token):
            continue
        ids[position] = _whole(token)
        if not _is_id(ids[position]):
            raise ValueError(
                f"item {item}, position {position}: expected a token id (an integer), "
                f"found {_kind(token)}"
            )


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON, which has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Dimensions = Annotated[int, Field(ge=1), BeforeValidator(_whole)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return {
        type(None): "null", bool: "a boolean", int: "a number", float: "a number",
        str: "text", list: "a list", dict: "an object",
    }.get(type(value), type(value).__name__)  # fmt: skip


# An empty text is refused where it is embedded, with its index.
Text = Annotated[str, WithJsonSchema(_TEXT)]

# Validated once, by `_check_input`: the library would try a list of token ids as texts first, and find a
# problem in each.
Input = Annotated[
    SkipValidation[list[str] | list[list[int]]],
    BeforeValidator(_check_input),
    WithJsonSchema(
        {
            "oneOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 1},
                _TOKENS,
                {"type": "array", "items": _TOKENS, "minItems": 1},
            ]
        }
    ),
]


# How many fields an object may have that are not declared, each of which is named then.
SURPLUS = 8


class Body(BaseModel):
    """A request's body, or an object in it, whose fields are all declared.

    Each problem that the library finds costs it microseconds and a kilobyte: of four megabytes of
    numbers where texts were expected it made two million in nine seconds and two gigabytes. So an object
    may have some fields too many and not any number, and lists (`fail_fast`) have one problem.
    """

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + SURPLUS:
            raise ValueError(
                f"expected an object with at most {len(cls.model_fields)} fields, found {len(value)}"
            )
        return value


OutputDtype = Literal["float", "int8", "ubinary"]
OUTPUT_DTYPE = (
    "`int8`: whole numbers from -127 to 127; times `scale`, one over their length, they are the vector of "
    "length 1. `ubinary`: the signs, 1 for above 0, eight dimensions to a byte and the first in its highest "
    "bit; Hamming distances stand in for cosines."
)
# Eight dimensions to a byte.
WHOLE_BYTES: dict[str, Any] = {
    "anyOf": [
        {"properties": {"output_dtype": {"enum": ["float", "int8"]}}},
        {"properties": {"dimensions": {"anyOf": [{"type": "null"}, {"multipleOf": 8}]}}},
    ]
}
TRUNCATE = "Cut texts that are too long (and say so) or refuse them; null: as the service is set."


class EmbeddingRequest(Body):
    """OpenAI's `POST /v1/embeddings`, output_dtype as Voyage and Mistral have it, and two fields of ours:
    truncate and partial."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"input": ["Good morning", "Hyvää huomenta"], "model": "mexma-small"}],
            **WHOLE_BYTES,
        },
    )

    input: Input
    model: str | None = Field(
        None,
        description="Name or fingerprint of a served model; any other name means the default one, "
        "and the answer says which it was.",
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = Field(
        None,
        description="Keep this many leading components and normalise again. The default model "
        "was not trained for it: fewer dimensions cost accuracy.",
    )
    output_dtype: OutputDtype = Field("float", description=OUTPUT_DTYPE)
    user: str | None = None
    truncate: bool | None = Field(None, description=TRUNCATE)
    partial: bool = Field(
        False,
        description="Answer the good items when others are bad: a bad item has an `error` in "
        "place of its embedding (in a .npy file a row of NaN, of whole numbers zeros, and the headers "
        "`x-item-errors` and `x-failed-items`). Otherwise one bad item fails the request.",
    )


class Truncation(BaseModel):
    """What was cut from an item. cut_at: offset in characters of its text."""

    tokens_seen: int
    tokens_used: int
    cut_at: int | None


class ItemError(BaseModel):
    message: str
    code: str


class EmbeddingItem(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None = Field(
        description="Numbers, or base64 of little-endian float32 or of the bytes of `output_dtype`; null "
        "beside an error."
    )
    scale: float | None = Field(None, description="With `output_dtype` int8.")
    truncation: Truncation | None = None
    error: ItemError | None = None


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """A served encoder. OpenAI's fields first, then what its manifest says."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "mexma"
    role: Literal["default", "further", "kept"] = Field(
        description="default: answers whoever names no other. further: one of MEXMA_FURTHER_MODELS. "
        "kept: it was the default before a reload, and is meant by its fingerprint only."
    )
    fingerprint: str
    dimensions: int
    max_tokens: int
    pooling: str
    precision: str
    engine: str = Field(
        description="What computes it: a kernel of the native engine or onnxruntime, its arithmetic, "
        "and for onnxruntime why it is not the native engine."
    )
    prefix: str
    source: dict[str, Any]
    quality: dict[str, Any]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Live(BaseModel):
    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """status: whether to send traffic. reason: a word for machines; detail: for people."""

    status: Literal["ready", "not_ready"]
    reason: str | None = None
    detail: str | None = None


class ReloadRequest(Body):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{}]})

    model: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="An artifact's path below MEXMA_MODELS_DIR; without it MEXMA_MODEL is read again.",
    )


class ReloadOutcome(BaseModel):
    """outcome: reloaded, unchanged (that very model serves already), rolled_back, failed_trial, or
    refused."""

    outcome: Literal["reloaded", "unchanged", "rolled_back", "failed_trial", "refused"]
    fingerprint: str = Field(description="Of the model that serves.")
    previous: str | None = Field(
        description="Fingerprint of the model that a rollback would return to."
    )
    reason: str | None = Field(None, description="Why a model was refused, or did not stay.")
    collections: list[str] = Field(
        [],
        description="Whose encoder is the model before: that stays loaded until they are moved or "
        "dropped.",
    )


class ReloadStatus(BaseModel):
    """What became of the last reload, and what is being done."""

    state: Literal["idle", "loading", "proving", "trial"]
    fingerprint: str = Field(description="Of the model that serves.")
    previous: str | None = Field(
        description="Fingerprint of the model that a rollback would return to."
    )
    last: ReloadOutcome | None = None

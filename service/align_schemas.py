"""What a request to align words looks like, and its answer (see `schemas` for the rest)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from service.schemas import TRUNCATE, Body, Truncation, Usage, text_or_texts

_TEXT = {"type": "string", "minLength": 1}
Texts = Annotated[
    Any,  # checked by the validator; the library's own would copy every text
    BeforeValidator(text_or_texts),
    WithJsonSchema({"oneOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
]


class AlignRequest(Body):
    """One pair of texts, or two lists of as many."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"source": "I have two cats.", "target": "Tengo dos gatos."}]
        },
    )

    source: Texts = Field(description="A text, or a list of texts.")
    target: Texts = Field(description="Its translation, or as many translations in the same order.")
    method: Literal["itermax", "argmax"] = Field(
        "itermax",
        description="`argmax` pairs words that are each other's nearest; `itermax` then does the same once "
        "more with what is left, which finds more pairs and a few wrong ones more.",
    )
    model: str | None = Field(
        None,
        description="Name or fingerprint of a served model; any other name means the default one, "
        "and the answer says which it was.",
    )
    truncate: bool | None = Field(None, description=TRUNCATE)

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.source) != len(self.target):
            raise ValueError(
                "expected as many texts in target as in source, found "
                f"{len(self.target)} and {len(self.source)}"
            )
        return self


class AlignedWord(BaseModel):
    """start, end: in characters (code points) of the text, whose slice `text` is."""

    text: str
    start: int
    end: int


class WordPair(BaseModel):
    """Words that say the same. source, target: their places in the lists of words. score: the cosine of the
    words' states, -1 to 1."""

    source: int
    target: int
    score: float


class Truncations(BaseModel):
    source: Truncation | None
    target: Truncation | None


class Alignment(BaseModel):
    """One pair of texts: the words of each as far as the encoder saw it, and the pairs among them."""

    source: list[AlignedWord]
    target: list[AlignedWord]
    pairs: list[WordPair]
    truncation: Truncations | None = Field(None, description="Only where a text was cut.")


class AlignResponse(BaseModel):
    alignments: list[Alignment] = Field(description="One for each pair, in order.")
    model: str
    fingerprint: str
    usage: Usage

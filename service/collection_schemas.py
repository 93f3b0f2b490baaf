"""What requests for collections look like, and their answers; schemas.py has the other routes'.

Search results are described here but never built from these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from mexma.language_tags import LANGUAGE_TAG, MAX_TAG_CHARACTERS, canonical_tag
from service.schemas import TRUNCATE, Body, ItemError, Text, Truncation, Whole
from service.store.protocol import LEAST_RECALL, MOST_RECALL, RECALL

CollectionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

LanguageTag = Annotated[
    str,
    AfterValidator(canonical_tag),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"^{LANGUAGE_TAG.pattern}$",
            "maxLength": MAX_TAG_CHARACTERS,
        }
    ),
]
Row = Annotated[list[float], Field(fail_fast=True)]
DocumentId = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _no_step_in_a_path(document_id: str) -> str:
    """Browsers, curl and httpx resolve `..` in a path before they ask, encoded or not: a client that
    deletes a document of that id would drop its collection. Raises ValueError."""
    if document_id in STEPS:
        raise ValueError(
            f"expected an id other than '.' and '..', which clients resolve in a path, found {document_id!r}"
        )
    return document_id


STEPS = (".", "..")
NewDocumentId = Annotated[
    DocumentId,
    AfterValidator(_no_step_in_a_path),
    Field(json_schema_extra={"not": {"enum": [*STEPS]}}),
]


class CollectionDescription(BaseModel):
    name: str
    dimensions: int
    fingerprint: str = Field(description="Of the encoder that all its vectors come from.")
    served: bool = Field(
        description="Whether that encoder is; where not, searches and writes answer 409."
    )
    count: int
    languages: dict[str, int]
    index_state: Literal["exact", "building", "approximate", "corrupt"] = Field(
        description="`building`: exact for as long as an index is being made."
    )
    created_at: str
    recall: float | None = Field(description="Of the exact answer, what searches found lately.")
    hubness: float | None = Field(description="0 without documents that are near to everything.")


class CollectionList(BaseModel):
    collections: list[CollectionDescription]


class MigrationRequest(Body):
    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"model": "mexma-small"}]}
    )

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] = Field(
        description="Name or fingerprint of a served model."
    )


class MigrationReport(BaseModel):
    """overlap: share of a document's k nearest that is the same by both encoders, mean over the
    queries. recall: share of the exact k nearest that searches of the other encoder's vectors find.
    queries: documents it was measured by, of `documents` that have both vectors."""

    k: int
    queries: int
    documents: int
    overlap: float
    recall: float


class MigrationDescription(BaseModel):
    """How far a collection is on its way to another encoder."""

    collection: str
    phase: Literal["embedding", "ready", "cut_over"]
    serving: str = Field(description="Fingerprint of the encoder that answers.")
    other: str = Field(description="Fingerprint of the encoder whose vectors are kept beside.")
    documents: int
    embedded: int = Field(description="Documents that `other` has a vector of.")
    share: float
    failed: dict[str, str] = Field(description="Documents that `other` cannot embed, and why.")
    index_state: Literal["exact", "building", "approximate", "corrupt"]
    documents_per_s: float | None
    eta_s: float | None
    blocked: str | None = Field(description="Why nothing goes on, if so.")
    report: MigrationReport | None = None


class SnapshotDescription(BaseModel):
    """A copy of a collection as of one moment."""

    id: str
    collection: str
    created_at: str
    count: int
    dim: int
    fingerprint: str
    bytes: int


class SnapshotList(BaseModel):
    snapshots: list[SnapshotDescription]


class DocumentIn(Body):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: NewDocumentId
    text: str = Field(description="One without a token fails alone; the others are stored.")
    lang: str | None = Field(
        None,
        description="A BCP 47 tag, `fi` or `pt-BR`; detected when absent. A document with what is none, "
        "or in which no registered language stands first, fails alone.",
    )
    metadata: dict[str, Any] | None = Field(
        None,
        description="Any object, nested 64 levels at most. Whole numbers from -2^63 to 2^64 - 1 are kept "
        "exactly, others as the nearest float64.",
    )


class UpsertRequest(Body):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "documents": [
                        {"id": "1", "text": "Kissa nukkuu sohvalla.", "lang": "fi"},
                        {"id": "2", "text": "El gato duerme.", "metadata": {"page": 3}},
                    ]
                }
            ]
        },
    )

    documents: list[DocumentIn] = Field(min_length=1, fail_fast=True)
    truncate: bool | None = Field(None, description=TRUNCATE)


class UpsertOutcome(BaseModel):
    """What became of one document, in the order they were sent."""

    id: str
    status: Literal["created", "updated", "failed"]
    lang: str | None = None
    truncation: Truncation | None = None
    error: ItemError | None = None


class UpsertResponse(BaseModel):
    results: list[UpsertOutcome]
    created: int
    updated: int
    failed: int
    fingerprint: str


# Read, and refused with its place, by `store/filters.py`; openapi.py says what one is made of.
Condition = Annotated[
    dict[str, Any],
    WithJsonSchema({"$ref": "#/components/schemas/Filter"}),
]
Languages = Annotated[
    list[LanguageTag],
    Field(
        min_length=1,
        fail_fast=True,
        description="Only documents in these; `pt` also finds `pt-BR`.",
    ),
]


def _given(field: str, *, kind: str = "array", without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema that says that a field is there, and others are null or not."""
    properties = {field: {"type": kind}} | {name: {"type": "null"} for name in without}
    return {"required": [field], "properties": properties}


class SelectionRequest(Body):
    """Which documents are meant; without a field, all."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"filter": {"field": "page", "gte": 3}}]},
    )

    languages: Languages | None = None
    filter: Condition | None = None


class CountResponse(BaseModel):
    count: int


class ScrollRequest(SelectionRequest):
    limit: Whole = Field(100, ge=1, le=10_000)
    cursor: str | None = Field(None, description="From the page before; null begins anew.")


class DeleteRequest(SelectionRequest):
    """By `ids`, or else all that `languages` and `filter` select, of which one must be there."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"ids": ["1", "2"]}],
            "oneOf": [
                _given("ids", without=("languages", "filter")),
                {
                    "anyOf": [_given("languages"), _given("filter", kind="object")],
                    "properties": {"ids": {"type": "null"}},
                },
            ],
        },
    )

    ids: list[DocumentId] | None = Field(None, min_length=1, fail_fast=True)


class DeleteResponse(BaseModel):
    deleted: int


class DocumentOut(BaseModel):
    id: str
    text: str
    lang: str
    metadata: dict[str, Any]


class ScrollResponse(BaseModel):
    """Documents in the order in which they were last written. cursor: null on the last page."""

    documents: list[DocumentOut]
    cursor: str | None


class SearchRequest(SelectionRequest):
    """Neighbours of texts (`queries`) or of vectors (`vectors`), whichever is given."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"queries": ["猫を二匹飼っています。"], "k": 3, "per_language": True}],
            "oneOf": [
                _given("queries", without=("vectors",)),
                _given("vectors", without=("queries",)),
            ],
        },
    )

    queries: list[Text] | None = Field(None, min_length=1, fail_fast=True)
    vectors: list[Row] | None = Field(None, min_length=1, fail_fast=True)
    fingerprint: str | None = Field(
        None,
        max_length=64,
        description="Of the encoder that `vectors` come from; another than the collection's gets "
        "409. Without it they are taken for the collection's own.",
    )
    k: Whole = Field(10, ge=1, le=1000)
    query_language: LanguageTag | None = Field(
        None, description="Language of the queries; detected from their text when absent."
    )
    exclude_query_language: bool = Field(
        False, description="No documents in the language of the query."
    )
    per_language: bool = Field(
        False, description="k neighbours in each language, instead of k in all."
    )
    score: Literal["cosine", "margin"] = Field(
        "cosine",
        description="What results are ranked by. `margin` divides the cosine by how near query "
        "and document are to their own neighbourhoods, so that a document that is near to "
        "everything does not win.",
    )
    score_threshold: float | None = Field(None, description="Drop results that score lower.")
    exact: bool = Field(False, description="Compare with every document, no approximation.")
    recall: float = Field(
        RECALL,
        ge=LEAST_RECALL,
        le=MOST_RECALL,
        description="Of the exact answer, the share that an approximate index should find. Less is "
        "faster.",
    )
    mutual: bool = Field(
        False,
        description="Say for each hit, which is among the k nearest to the query, whether the query is "
        "also the nearest to it: no other document (of the query's language, where that is known) is "
        "nearer to the hit, by cosine. With k 1, hits of which it is true are mutual nearest neighbours. "
        "The query need not be stored: its own vector is compared with the documents'; one that is as "
        "near as it, such as the same text, does not count against it.",
    )
    explain: bool = Field(False, description="Say how the hits were found, and their scores made.")
    truncate: bool | None = Field(None, description=TRUNCATE)


class SearchHit(BaseModel):
    id: str
    text: str
    lang: str
    score: float
    cosine: float
    metadata: dict[str, Any]
    mutual: bool | None = Field(None, description="null unless asked for.")


class ScoreTerms(BaseModel):
    """What a score is made of; `around_*` are the mean cosines that a margin divides by."""

    cosine: float
    around_query: float | None
    around_document: float | None


class Explanation(BaseModel):
    """path: how candidates were found. documents: in the collection. matching: of these, that
    pass the filters; selectivity: their ratio. candidates: compared by their stored vector.
    terms: one per hit."""

    path: Literal["exact", "filtered_exact", "approximate"]
    documents: int
    matching: int
    selectivity: float
    candidates: int
    terms: list[ScoreTerms]


class SearchResponse(BaseModel):
    results: list[list[SearchHit]]
    explanations: list[Explanation] | None = Field(None, description="One per query, if asked.")
    query_languages: list[str | None]
    query_truncations: dict[int, Truncation] = Field(
        default_factory=dict, description="Of the queries that were cut, by index."
    )
    languages_without_documents: list[str] = Field(
        default_factory=list,
        description="Those of `languages` that no document of the collection had when the search began.",
    )
    fingerprint: str

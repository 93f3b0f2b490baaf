"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know.

That a parameter is left out and never null, what a filter is made of, and the limits that come from the
encoders that are served. What no schema can say is said in the descriptions: which texts hold a token,
which cursors and models there are, and that vectors have a direction.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from service.engine.encoders import Encoders
from service.store.filters import MAX_BOUND_CHARACTERS, MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES

_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_BOUND = {"type": ["string", "number"], "maxLength": MAX_BOUND_CHARACTERS}
_FILTER = {"$ref": "#/components/schemas/Filter"}
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def _joined(key: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: content},
        "required": [key],
        "additionalProperties": False,
    }


_SEVERAL = {"type": "array", "items": _FILTER, "minItems": 1}
FILTER: dict[str, Any] = {
    "title": "Filter",
    "description": "A condition on the metadata. `field` is a name, a dotted path or a list of names. At "
    f"most {MAX_CONDITIONS} conditions, {MAX_DEPTH} deep.",
    "examples": [{"and": [{"field": "source", "in": ["mail"]}, {"field": "page", "gte": 3}]}],
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "field": {"anyOf": [{"type": "string"}, _NAMES]},
                "eq": _SCALAR,
                "in": {"type": "array", "items": _SCALAR, "maxItems": MAX_VALUES},
                "exists": {"type": "boolean"},
            }
            | dict.fromkeys(("gt", "gte", "lt", "lte"), _BOUND),
            "required": ["field"],
            "minProperties": 2,
            "additionalProperties": False,
        },
        _joined("and", _SEVERAL),
        _joined("or", _SEVERAL),
        _joined("not", _FILTER),
    ],
}

KEY = {"type": "http", "scheme": "bearer", "description": "An API key, where there are any"}


def complete(app: FastAPI, encoders: Encoders) -> None:
    """Have `app.openapi` say all of it. encoders: those that are served."""
    generate = app.openapi

    described: list[str] = []

    def openapi() -> dict[str, Any]:
        served = [embedder.encoder.fingerprint for embedder in encoders]
        if app.openapi_schema is None or served != described:  # a reload changes the limits
            app.openapi_schema, described[:] = None, served
            document = generate()
            document["components"]["securitySchemes"] = {"key": KEY}
            document["security"] = [{"key": []}, {}]
            _say_what_is_left_out(document)
            schemas = document["components"]["schemas"]
            schemas["Filter"] = FILTER
            _say_limits(schemas, encoders)
        return app.openapi_schema  # type: ignore[return-value]

    app.openapi = openapi  # type: ignore[method-assign]


def _say_what_is_left_out(document: dict[str, Any]) -> None:
    """A header or a query has no null: a parameter that says nothing is not there."""
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                if null := [s for s in schema.get("anyOf", ()) if s == {"type": "null"}]:
                    (only,) = [s for s in schema.pop("anyOf") if s not in null]
                    parameter["schema"] = only | schema


def _say_limits(schemas: dict[str, Any], encoders: Encoders) -> None:
    dims = [e.encoder.manifest.dim for e in encoders]
    vocabulary = max(e.encoder.tokenizer.vocabulary_size for e in encoders)
    takes_ids = (
        ("EmbeddingRequest", "input"), ("TeiEmbedRequest", "inputs"), ("TeiEmbedAllRequest", "inputs")
    )  # fmt: skip
    for name, field in takes_ids:
        properties = schemas[name]["properties"]
        if "dimensions" in properties:
            properties["dimensions"]["anyOf"][0]["maximum"] = max(dims)
        _, _, ids, lists = properties[field]["oneOf"]
        for one in (ids, lists["items"]):
            one["items"] = one["items"] | {"maximum": vocabulary - 1}
    if "SearchRequest" in schemas:
        vectors = schemas["SearchRequest"]["properties"]["vectors"]["anyOf"][0]
        vectors["items"] |= {"minItems": min(dims), "maxItems": max(dims)}

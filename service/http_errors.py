"""The one table from our exceptions to HTTP, in the shapes the contracts ask for.

OpenAI's routes and our own answer `{"error": {"message", "type", "param", "code"}}`, the
routes of text-embeddings-inference `{"error", "error_type"}`.
"""

from __future__ import annotations

import logging
import math
import re
from typing import Any, NamedTuple

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mexma import errors
from service.routes.names import UNMATCHED, methods_of, name_of

log = logging.getLogger(__name__)
COLLECTIONS = re.compile(r"(/v1)?/collections(/|$)")
SHOWN_PATH = 200
"""Characters of a path that an error repeats."""
TEI_PATHS = ("/embed", "/embed_all", "/similarity", "/tokenize", "/", "/info", "/health")


class Shape(NamedTuple):
    """How one kind of error looks to a client."""

    status: int
    type: str  # OpenAI's vocabulary
    tei_type: str  # text-embeddings-inference's vocabulary


# The first class that matches decides, so subclasses stand before their parents.
TABLE: tuple[tuple[type[errors.MexmaError], Shape], ...] = (
    (errors.InputError, Shape(422, "invalid_request_error", "Validation")),
    (errors.NoTokenStates, Shape(501, "not_implemented_error", "Validation")),
    (errors.ModelNotFound, Shape(404, "invalid_request_error", "Validation")),
    (errors.CollectionNotFound, Shape(404, "not_found_error", "Validation")),
    (errors.DocumentNotFound, Shape(404, "not_found_error", "Validation")),
    (errors.BackupNotFound, Shape(404, "not_found_error", "Validation")),
    (errors.CanaryMismatch, Shape(503, "store_error", "Backend")),
    (errors.MigrationNotFound, Shape(404, "not_found_error", "Validation")),
    (errors.MigrationConflict, Shape(409, "conflict_error", "Validation")),
    (errors.CollectionExists, Shape(409, "conflict_error", "Validation")),
    (errors.FingerprintMismatch, Shape(409, "conflict_error", "Validation")),
    (errors.Overloaded, Shape(503, "overloaded_error", "Overloaded")),
    (errors.QuotaExceeded, Shape(429, "rate_limit_error", "Overloaded")),
    (errors.AuditError, Shape(500, "audit_error", "Backend")),
    (errors.DeadlineExceeded, Shape(504, "timeout_error", "Overloaded")),
    (errors.StoreUnavailable, Shape(503, "store_error", "Overloaded")),
    (errors.ReloadRefused, Shape(422, "invalid_request_error", "Validation")),
    (errors.ReloadConflict, Shape(409, "conflict_error", "Validation")),
    (errors.ReloadUnsupported, Shape(501, "not_implemented_error", "Validation")),
    (errors.StoreUnsupported, Shape(501, "not_implemented_error", "Validation")),
    (errors.EngineError, Shape(500, "engine_error", "Backend")),
    (errors.StoreCorrupt, Shape(500, "store_error", "Backend")),
    (errors.StoreFailed, Shape(500, "store_error", "Backend")),
    (errors.StoreError, Shape(422, "invalid_request_error", "Validation")),
    (errors.MexmaError, Shape(500, "internal_error", "Backend")),
)


_SEEN: dict[type[errors.MexmaError], tuple[Shape, str]] = {}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    item: int | None = None
    limit: int | None = None


class ErrorBody(BaseModel):
    """What every error of this service looks like."""

    error: ErrorDetail


class TeiErrorBody(BaseModel):
    """An error in text-embeddings-inference's shape."""

    error: str
    error_type: str


STATUS_MEANINGS = {
    400: "The body is not JSON, or not UTF-8",
    401: "No API key, or one that is unknown, revoked or expired",
    403: "The key's role does not allow it, or a page of another origin asks",
    404: "No such model, collection, document, snapshot or migration",
    408: "The body did not arrive in time",
    409: "The collection belongs to another encoder, exists with other properties, or is in another "
    "phase of its migration; or a model is being reloaded already",
    413: "The body is too large",
    415: "The body is not declared as application/json",
    422: "The request cannot be served as it is; the message names the item and the limit",
    429: "The client's quota of tokens is spent; Retry-After says when to come back",
    500: "The engine or the store failed; the service goes on",
    501: "What is configured cannot do this; the message says what can",
    503: "Full, or the queue would outlast the request's deadline, or the store does not answer; "
    "Retry-After says when to come back",
    504: "The deadline passed before the vectors were ready",
}


def documented(*statuses: int, tei: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route, for these error statuses."""
    body = TeiErrorBody if tei else ErrorBody
    return {s: {"model": body, "description": STATUS_MEANINGS[s]} for s in statuses}


BODY_ERRORS = (400, 408, 413, 415, 422)
INFERENCE_ERRORS = (429, 500, 503, 504)
ACCESS_ERRORS = (401, 403)
STORE_ERRORS = (500, 503)


def snake(name: str) -> str:
    """`TextTooLong` -> `text_too_long`, the `code` of an error."""
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


def error_response(
    path: str,
    status: int,
    message: str,
    *,
    kind: str,
    tei_kind: str = "Validation",
    param: str | None = None,
    code: str | None = None,
    item: int | None = None,
    limit: int | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error in the shape that the route at `path` promises."""
    if path in TEI_PATHS:
        content: Any = {"error": message, "error_type": tei_kind}
    else:
        # OpenAI's four fields are always there; ours only where they say something.
        detail = {"message": message, "type": kind, "param": param, "code": code}
        ours = {"item": item, "limit": limit}
        content = {"error": detail | {k: v for k, v in ours.items() if v is not None}}
    return Response(orjson.dumps(content), status, headers=headers, media_type="application/json")


def _seen_as(kind: type[errors.MexmaError]) -> tuple[Shape, str]:
    """How errors of a class look to a client, and their code."""
    if (seen := _SEEN.get(kind)) is None:
        shape = next(shape for known, shape in TABLE if issubclass(kind, known))
        seen = _SEEN[kind] = shape, snake(kind.__name__)
    return seen


def for_exception(path: str, error: errors.MexmaError, param: str | None = None) -> Response:
    """The response to one of our exceptions."""
    shape, code = _seen_as(type(error))
    if isinstance(error, errors.StoreCorrupt | errors.StoreFailed):
        log.error("%s: %s", code, error)
    headers = {}
    if isinstance(error, errors.Overloaded | errors.QuotaExceeded | errors.StoreUnavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    return error_response(
        path,
        shape.status,
        error.public,
        kind=shape.type,
        tei_kind=shape.tei_type,
        param=param,
        code=code,
        item=getattr(error, "item", None),
        limit=getattr(error, "limit", None),
        headers=headers,
    )


# The library's sentences that do not say what to do, in ours.
WORDING = {
    "extra_forbidden": "{where}: there is no such field; /docs lists them",
    "missing": "{where} is missing",
    "model_attributes_type": "{where} must be a JSON object",
}
EXPECTED = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "none_required": "null",
}


def _validation_message(problem: dict[str, Any]) -> tuple[str, str | None]:
    where = ".".join(str(part) for part in problem["loc"] if part not in ("body", "path"))
    kind, found = problem["type"], problem.get("input")
    if kind in WORDING:
        return WORDING[kind].format(where=where or "the body"), (where or None)
    if kind in EXPECTED:
        message = f"expected {EXPECTED[kind]}, found {_shown(found)}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        if isinstance(found, str | int | float) and kind != "value_error":
            message += f", found {_shown(found)}"
    return (f"{where}: {message}" if where else message), (where or None)


def _shown(found: Any) -> str:
    """What came, as JSON calls it, shortened."""
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    if isinstance(found, list | dict):
        return "a list" if isinstance(found, list) else "an object"
    shown = repr(found)
    return shown if len(shown) <= 80 else shown[:77] + "…"


def no_route(method: str, path: str) -> Response:
    """The answer to what no route is for: 405 and the methods that are answered there, or 404."""
    methods = methods_of(path)
    status, words = (405, "method not allowed") if methods else (404, "not found")
    shown = path if len(path) <= SHOWN_PATH else f"{path[:SHOWN_PATH]}…"
    message = f"{method} {shown}: {words}; /docs lists the routes"
    # A client's base URL with `/v1` where it adds that itself, or without where it does not.
    meant = (f"/v1{path}", path.removeprefix("/v1"))
    if there := [p for p in meant if p != path and name_of(p) != UNMATCHED]:
        message += f", {there[0]} among them"
    allow = methods | {"HEAD"} if "GET" in methods else methods
    return error_response(
        path,
        status,
        message,
        kind="invalid_request_error" if methods else "not_found_error",
        headers={"allow": ", ".join(sorted(allow))} if methods else None,
    )


def install(app: FastAPI) -> None:
    """Register the handlers on `app`."""

    async def mexma_error(request: Request, error: errors.MexmaError) -> Response:
        return for_exception(request.url.path, error)

    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        problems = [_validation_message(p) for p in error.errors()]
        shown = "; ".join(message for message, _ in problems[:3])
        if len(problems) > 3:
            shown += f"; and {len(problems) - 3} more"
        return error_response(
            request.url.path,
            422,
            shown,
            kind="invalid_request_error",
            param=problems[0][1],
            code="invalid_value",
        )

    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 404 and not app.state.collections and COLLECTIONS.match(path):
            return error_response(
                path,
                404,
                "collections are turned off here (MEXMA_COLLECTIONS)",
                kind="not_found_error",
                code="collections_off",
            )
        if (error.status_code, error.detail) in ((404, "Not Found"), (405, "Method Not Allowed")):
            return no_route(request.method, path)
        return error_response(
            path,
            error.status_code,
            error.detail,
            kind="not_found_error" if error.status_code == 404 else "invalid_request_error",
            headers=dict(error.headers or {}),
        )

    # Starlette types handlers by the base class; each is registered for what it takes.
    app.add_exception_handler(errors.MexmaError, mexma_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, validation_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]

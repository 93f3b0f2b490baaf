"""Who may do what: each request's key, the role its route needs, and where a browser came from.

Decided from the method and the path alone, before a byte of the body is read. What is not in the
table needs an administrator, so that a route that somebody adds is closed until it is named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.types import Scope

from service.routes.names import methods_of
from service.security.keys import Key, KeyFile, Role
from service.security.quotas import Bucket, Quotas
from service.settings import Settings

COLLECTION = r"/v1/collections/[^/]+"
# The first rule that matches decides. None: everybody.
RULES: tuple[tuple[str, str, Role | None], ...] = (
    ("GET", r"/health(/live|/ready)?", None),
    ("GET HEAD", r"/", None),  # the page and the documentation hold nothing of anybody's
    ("GET HEAD", r"/docs|/openapi\.json|/swagger/[^/]+", None),
    ("GET", r"/metrics", "metrics"),
    ("GET", r"/v1/models/reload", "admin"),
    ("GET", r"/info|/v1/models(/.+)?", "read"),
    ("POST", r"/v1/(embeddings|align|mine)|/embed|/embed_all|/similarity|/tokenize|/", "read"),
    ("GET", rf"/v1/collections|{COLLECTION}(/.*)?", "read"),
    ("POST", rf"{COLLECTION}/(search|documents/count|documents/scroll)", "read"),
    ("PUT", COLLECTION, "write"),
    ("POST DELETE", rf"{COLLECTION}/documents", "write"),
    ("DELETE", rf"{COLLECTION}/documents/.+", "write"),
)
TABLE = tuple((methods.split(), re.compile(path, re.DOTALL), role) for methods, path, role in RULES)
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
Reason = Literal["no_key", "unknown_key", "role", "cross_origin", "no_route"]


def role_for(method: str, path: str) -> Role | None:
    """The role that a request needs, None for none."""
    for methods, pattern, role in TABLE:
        if method in methods and pattern.fullmatch(path):
            return role
    return "admin"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    reason: Reason
    message: str

    @property
    def headers(self) -> dict[str, str]:
        # The rest of the request is not read.
        headers = {"connection": "close"}
        return headers | {"www-authenticate": "Bearer"} if self.status == 401 else headers


NO_ROUTE = Refusal(404, "no_route", "there is nothing here that a key could allow")


@dataclass(frozen=True, slots=True)
class Admitted:
    """key: None where there are no keys, or none is needed. role: what the request needs."""

    role: Role | None
    key: Key | None = None
    quota: Bucket | None = None


class Guard:
    """keys: None lets everybody do everything. origins: of pages that may call besides our own."""

    def __init__(self, keys: KeyFile | None, *, origins: tuple[str, ...] = ()):
        self._keys = keys
        self._origins = {origin.encode() for origin in origins}
        self._quotas = Quotas()

    @property
    def valid(self) -> bool:
        """Whether the keys are those of the file as it is now."""
        return self._keys is None or self._keys.valid

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Admitted | Refusal:
        method, path = scope["method"], scope["path"]
        role = role_for(method, path)
        if (method in UNSAFE or _is_preflight(method, headers)) and self._is_foreign(headers):
            return Refusal(
                403,
                "cross_origin",
                "pages of other origins may not call; MEXMA_CORS_ORIGINS lists those that may",
            )
        if role is None or self._keys is None:
            return Admitted(role)
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return Refusal(401, "no_key", "an API key is needed: Authorization: Bearer KEY")
        key = self._keys.find(given.strip())
        if key is None:
            return Refusal(401, "unknown_key", "the API key is unknown, revoked or expired")
        if not key.allows(role):
            needed = f"this needs a key of role {role}, yours is of role {key.role}"
            return Refusal(403, "role", needed) if method in methods_of(path) else NO_ROUTE
        return Admitted(role, key, self._quotas.of(key.name, key.tokens_per_minute))

    def _is_foreign(self, headers: Mapping[bytes, bytes]) -> bool:
        """Sent by a page of another origin: a browser always says so, and nobody else need."""
        origin = headers.get(b"origin")
        if origin is None or origin in self._origins:
            return False
        return origin.partition(b"://")[2] != headers.get(b"host")


def _is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks if a page may call. Where some may, theirs are answered before."""
    return method == "OPTIONS" and b"access-control-request-method" in headers


def guard_of(settings: Settings) -> Guard:
    """As the settings say. Raises KeyFileError."""
    keys = KeyFile(settings.api_keys_file) if settings.api_keys_file else None
    return Guard(keys, origins=settings.cors_origins)

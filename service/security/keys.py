"""API keys: who may call, as which role, with how many tokens a minute.

The file holds hashes, never keys, and is read again when it changes: a key is added, replaced or
revoked without a restart. A key is `mexma_ID_SECRET`. The secret has 256 random bits, so one
SHA-256 is all it needs: there is nothing to guess that a slow hash would slow down.

Refuses to know: HTTP, routes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from mexma.errors import KeyFileError

log = logging.getLogger(__name__)

Role = Literal["metrics", "read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
ID = re.compile(r"[0-9a-f]{8}")
KEY = re.compile(r"mexma_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
LOOK_AGAIN_S = 1.0
MAX_FILE_BYTES = 2**20

# Compared with when there is no such key, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Key:
    """id: public, tells keys of one client apart. name: the client; its keys share a quota.
    hash: SHA-256 of the whole key, in hexadecimal. expires: seconds since 1970."""

    id: str
    name: str
    role: Role
    hash: str
    tokens_per_minute: int | None = None
    expires: float | None = None

    def allows(self, role: Role) -> bool:
        return ROLES.index(role) <= ROLES.index(self.role)


class KeyFile:
    """The keys of a file, as it is now."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time):
        """Raises KeyFileError when the file cannot be used."""
        self._path = path
        self._clock = clock
        self._looked = self._clock()
        self._stamp = self._stat()
        self._keys = read_keys(path)
        self.valid = True

    def find(self, given: str) -> Key | None:
        """The key that `given` is; None when it is none, or has expired."""
        self._refresh()
        match = KEY.fullmatch(given)
        key = self._keys.get(match.group(1)) if match else None
        found = hashlib.sha256(given.encode()).hexdigest()
        right = hmac.compare_digest(found, key.hash if key else _NOBODY)
        if key is None or not right:
            return None
        return key if key.expires is None or self._clock() < key.expires else None

    def _refresh(self) -> None:
        now = self._clock()
        if 0 <= now - self._looked < LOOK_AGAIN_S:
            return
        self._looked = now
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            # Half a file must not lock everybody out, nor let a revoked key in for good: it is loud.
            self.valid = False
            log.error("the keys stay as they were: %s", error)
            return
        self.valid = True
        log.info("%d API keys read from %s", len(self._keys), self._path)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> dict[str, Key]:
    """Keys by id. Raises KeyFileError that names what is wrong and where."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise KeyFileError(f"{path} may have {MAX_FILE_BYTES} bytes, has more")
        content = json.loads(raw)
        entries = content["keys"]
        keys = [_parse(path, i, entry) for i, entry in enumerate(entries)]
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFileError(f'{path} must be {{"keys": [...]}} in JSON; {error}') from error
    by_id = {key.id: key for key in keys}
    if len(by_id) != len(keys):
        raise KeyFileError(f"{path}: each id may be there once")
    return by_id


def _parse(path: Path, index: int, entry: dict[str, Any]) -> Key:
    try:
        key = Key(**entry)
    except TypeError as error:
        raise KeyFileError(f"{path}: key {index}: {error}") from None
    checks = {
        "id must be 8 hexadecimal digits": isinstance(key.id, str) and ID.fullmatch(key.id),
        "name must be 1 to 64 of A-Z, a-z, 0-9 and _.@-": isinstance(key.name, str)
        and NAME.fullmatch(key.name),
        f"role must be one of {', '.join(ROLES)}": key.role in ROLES,
        "hash must be 64 hexadecimal digits": isinstance(key.hash, str)
        and re.fullmatch("[0-9a-f]{64}", key.hash),
        "tokens_per_minute must be a whole number above 0": key.tokens_per_minute is None
        or (type(key.tokens_per_minute) is int and key.tokens_per_minute > 0),
        "expires must be seconds since 1970": key.expires is None
        or type(key.expires) in (int, float),
    }
    for says, met in checks.items():
        if not met:
            raise KeyFileError(f"{path}: key {index}: {says}")
    return key


def new_key(
    name: str,
    role: Role,
    *,
    tokens_per_minute: int | None = None,
    expires: datetime | None = None,
) -> tuple[str, Key]:
    """A key to hand out, and what is kept of it."""
    key_id = secrets.token_hex(4)
    given = f"mexma_{key_id}_{secrets.token_urlsafe(32)}"
    seconds = expires.astimezone(UTC).timestamp() if expires else None
    hashed = hashlib.sha256(given.encode()).hexdigest()
    return given, Key(key_id, name, role, hashed, tokens_per_minute, seconds)


def write_keys(path: Path, keys: list[Key]) -> None:
    """Replace the file in one step. A new one may be read by its owner only."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    Path(file.name).replace(path)

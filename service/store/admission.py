"""What may enter a store: names, documents and vectors, checked before anything is touched.

Each refusal is an InputError that names the item. Nothing here knows how things are kept.
"""

from __future__ import annotations

import json
import re

import numpy as np

from mexma.errors import CollectionExists, FingerprintMismatch, InputError, UnencodableText
from service.store.protocol import CollectionInfo, Document, Vectors

MAX_DIM = 16_384
MAX_ID_BYTES = 512
MAX_METADATA_DEPTH = 64
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LANGUAGE = re.compile(r"[A-Za-z0-9]{1,8}(-[A-Za-z0-9]{1,8})*")


def check_name(name: str) -> None:
    """Refuse a collection name that could mean anything else to a file system."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"a collection name is 1 to 64 of A-Z, a-z, 0-9, _ and -, got {name[:80]!r}"
        )


def check_dim(dim: int) -> None:
    if not 1 <= dim <= MAX_DIM:
        raise InputError(f"a collection's dim is 1 to {MAX_DIM}, got {dim}")


def check_fingerprint(name: str, expected: str, found: str, *, otherwise: str = "") -> None:
    """Refuse vectors of another encoder than the collection's. otherwise: a further way out."""
    if expected != found:
        raise FingerprintMismatch(
            f"collection {name!r} holds vectors of encoder {expected}, these come from encoder {found}; "
            f"serve that encoder's model to use it, {otherwise}or put its texts into a new collection",
            expected=expected,
            found=found,
        )


def check_same(info: CollectionInfo, dim: int, fingerprint: str) -> CollectionInfo:
    """The collection that exists, where it is the one that was asked for."""
    if info.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"collection {info.name!r} exists for encoder {info.fingerprint}, not {fingerprint}; "
            "choose another name, or serve that encoder's model to use it",
            expected=info.fingerprint,
            found=fingerprint,
        )
    if info.dim != dim:
        raise CollectionExists(f"collection {info.name!r} exists with dim {info.dim}, not {dim}")
    return info


def _encode_metadata(document: Document, item: int) -> str:
    _check_depth(document.metadata, item)
    try:
        return json.dumps(document.metadata, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise InputError(
            f"metadata of document {item} must be what JSON can hold: {e}", item=item
        ) from e


def _check_depth(metadata: object, item: int) -> None:
    """Refuse nesting that could be written on a short stack and not be read on a longer one."""
    level, depth = [metadata], 0
    while level:
        if depth > MAX_METADATA_DEPTH:
            raise InputError(
                f"metadata of document {item} may nest {MAX_METADATA_DEPTH} levels, not more",
                item=item,
                limit=MAX_METADATA_DEPTH,
            )
        inner: list[object] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else ()
            inner += value if isinstance(value, list | tuple) else ()
        level, depth = inner, depth + 1


def check_document(document: Document, item: int) -> str:
    """Refuse an id that is empty or long, a malformed tag, and text that UTF-8 cannot hold.

    Returns the metadata as JSON; metadata that JSON cannot hold is refused too.
    """
    metadata = _encode_metadata(document, item)
    for what, value in (("id", document.id), ("text", document.text), ("metadata", metadata)):
        try:
            size = len(value.encode())
        except UnicodeEncodeError as e:
            raise UnencodableText(
                f"{what} of document {item} must be valid Unicode, "
                f"got a lone surrogate at character {e.start}",
                item=item,
            ) from e
        if what == "id" and not 1 <= size <= MAX_ID_BYTES:
            raise InputError(
                f"id of document {item} must be 1 to {MAX_ID_BYTES} bytes of UTF-8, got {size}",
                item=item,
                limit=MAX_ID_BYTES,
            )
    if not LANGUAGE.fullmatch(document.lang):
        raise InputError(
            f"lang of document {item} must be a BCP 47 tag, got {document.lang[:40]!r}", item=item
        )
    return metadata


def is_unicode(id: str) -> bool:
    """Whether an id can be stored at all; one that cannot does not exist."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def unit_vectors(vectors: Vectors, count: int | None, dim: int) -> Vectors:
    """The vectors with length 1, float32 `[n, dim]`, so that an inner product is the cosine.

    vectors: float32 `[n, dim]`; count: the n expected, None for any. The length is taken in
    float64, so a row's result does not depend on the other rows. Raises InputError with the
    row's index where a number is not finite or a row is all zeros, which has no direction.
    """
    if vectors.dtype != np.float32:
        raise InputError(f"vectors must be float32, got {vectors.dtype}")
    if vectors.ndim != 2 or vectors.shape[1] != dim or count not in (None, len(vectors)):
        rows = "n" if count is None else count
        raise InputError(f"vectors must be of shape [{rows}, {dim}], got {list(vectors.shape)}")
    for item in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        raise InputError(f"vector {item} must be finite, got NaN or infinity", item=int(item))
    lengths = np.sqrt(np.einsum("nd,nd->n", *[vectors.astype(np.float64)] * 2))
    for item in np.flatnonzero(lengths == 0):
        raise InputError(f"vector {item} must have a direction, got all zeros", item=int(item))
    return np.ascontiguousarray((vectors / lengths[:, None]).astype(np.float32))

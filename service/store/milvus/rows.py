"""What a collection is in Milvus: its names, its fields and their limits, and its stamp.

A document's row is found under the hash of its id, so no id is ever part of an expression. The
name of the vector field holds a hash of the encoder's fingerprint: a collection that was dropped
and made for another encoder meanwhile refuses old writes and searches by itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mexma.errors import InputError, StoreError
from service.store.admission import MAX_ID_BYTES
from service.store.milvus.terms import Terms, terms_of
from service.store.protocol import Document, Vectors, primary

PREFIX = "mexma_"
STAMP = "mexma.stamp"
REQUEST_BYTES = 16 << 20
"""Of one upsert; Milvus takes 64 MB. A write beyond it goes in parts, and is not one any more."""
MAX_TEXT_BYTES = 65_535
MAX_TAG_BYTES = 255
MAX_TERMS = 4_096
TERM_CHARACTERS = 32
DOCUMENT_FIELDS = ["id", "text", "lang", "metadata", "seq"]


def milvus_name(name: str) -> str:
    """The name in Milvus, which has no "-": "_h" stands for it, and "__" for "_"."""
    return PREFIX + name.replace("_", "__").replace("-", "_h")


def our_name(milvus: str) -> str | None:
    """The name of a Milvus collection here, None for one that is not of this service."""
    if not milvus.startswith(PREFIX):
        return None
    name = re.sub("_([_h])", lambda m: "_" if m[1] == "_" else "-", milvus.removeprefix(PREFIX))
    return name if milvus_name(name) == milvus else None


def key_of(id: str) -> str:
    """The primary key of a document: 128 bits of a hash of its id."""
    return hashlib.blake2b(id.encode(), digest_size=16).hexdigest()


def vector_field(fingerprint: str) -> str:
    digest = hashlib.blake2b(fingerprint.encode("utf-8", "surrogatepass"), digest_size=16)
    return f"vector_{digest.hexdigest()}"


@dataclass(frozen=True)
class Stamp:
    """What was written beside the schema when the collection was made, and never changes.

    index: of its vectors. incarnation: of this name, so that what belongs to an earlier one is told
    apart. side: what its name in Milvus ends with, see sides.py; a collection is renamed as a whole,
    so that is not written.
    """

    name: str
    dim: int
    fingerprint: str
    created_at: str
    index: str
    incarnation: str
    side: str = ""

    @classmethod
    def new(cls, name: str, dim: int, fingerprint: str, index: str) -> Stamp:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(name, dim, fingerprint, now, index, secrets.token_hex(8))

    def of_another(self, dim: int, fingerprint: str, side: str) -> Stamp:
        """Of a collection beside this one, for another encoder."""
        return replace(
            self, dim=dim, fingerprint=fingerprint, incarnation=secrets.token_hex(8), side=side
        )

    @classmethod
    def read(cls, name: str, described: dict[str, Any], side: str = "") -> Stamp:
        """From what Milvus says about a collection. Raises StoreError where it is not of ours."""
        written = described.get("properties", {}).get(STAMP) or described.get("description")
        try:
            stamp = cls(**json.loads(written or ""), side=side)
        except (TypeError, ValueError) as e:
            raise StoreError(
                f"the Milvus collection {milvus_name(name) + side!r} was not made by this service: "
                f"it has no {STAMP!r} that can be read"
            ) from e
        if stamp.name != name:
            raise StoreError(
                f"the Milvus collection {milvus_name(name) + side!r} must be stamped for {name!r}, "
                f"its stamp says {stamp.name!r}"
            )
        return stamp

    def write(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if key != "side"})

    @property
    def collection(self) -> str:
        return milvus_name(self.name) + self.side

    @property
    def vector(self) -> str:
        return vector_field(self.fingerprint)


def row_of(document: Document, item: int, metadata: str, vector: Vectors) -> dict[str, Any]:
    """A document's row, without `seq`. metadata: as JSON. vector: float32 `[dim]`, as given.

    Raises InputError with the item where a field is larger than Milvus holds.
    """
    found: Terms = terms_of(json.loads(metadata))
    bounds = json.dumps(found.bounds)
    for what, size, limit in (
        ("text", len(document.text.encode()), MAX_TEXT_BYTES),
        ("lang", len(document.lang), MAX_TAG_BYTES),
        ("metadata", len(metadata.encode()), MAX_TEXT_BYTES),
        ("what ranges compare in the metadata", len(bounds), MAX_TEXT_BYTES),
    ):
        if size > limit:
            raise InputError(
                f"{what} of document {item} may take {limit} bytes in Milvus, it takes {size}",
                item=item,
                limit=limit,
            )
    if len(found.terms) > MAX_TERMS:
        raise InputError(
            f"metadata of document {item} may have {MAX_TERMS} distinct paths and values in Milvus, "
            f"it has {len(found.terms)}",
            item=item,
            limit=MAX_TERMS,
        )
    return {
        "key": key_of(document.id),
        "id": document.id,
        "text": document.text,
        "lang": document.lang,
        "subtag": primary(document.lang),
        "metadata": metadata,
        "terms": found.terms,
        "bounds": found.bounds,
        "vector": vector,
    }


def parts(rows: list[dict[str, Any]], dim: int) -> Iterator[list[dict[str, Any]]]:
    """The rows in parts that one request can carry; mostly that is one."""
    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        needs = 4 * dim + 4 * (len(row["text"]) + len(row["metadata"])) + 40 * len(row["terms"])
        needs += sum(map(len, row["bounds"].values()))
        if part and size + needs > REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(row)
        size += needs
    yield part


def document_of(row: dict[str, Any]) -> Document:
    return Document(row["id"], row["text"], row["lang"], json.loads(row["metadata"]))


def fields(stamp: Stamp) -> list[tuple[str, str, dict[str, Any]]]:
    """The schema: name, Milvus type, and properties of each field."""
    return [
        ("key", "VARCHAR", {"is_primary": True, "max_length": TERM_CHARACTERS}),
        ("seq", "INT64", {}),
        ("id", "VARCHAR", {"max_length": MAX_ID_BYTES}),
        ("text", "VARCHAR", {"max_length": MAX_TEXT_BYTES}),
        ("lang", "VARCHAR", {"max_length": MAX_TAG_BYTES}),
        ("subtag", "VARCHAR", {"max_length": 8}),
        ("metadata", "VARCHAR", {"max_length": MAX_TEXT_BYTES}),
        (
            "terms",
            "ARRAY",
            {"element_type": "VARCHAR", "max_capacity": MAX_TERMS, "max_length": TERM_CHARACTERS},
        ),
        ("bounds", "JSON", {}),
        (stamp.vector, "FLOAT_VECTOR", {"dim": stamp.dim}),
    ]

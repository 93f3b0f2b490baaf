"""Where commands find collections: in a folder, or on a Milvus server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from service.settings import Settings
from service.store.local import LocalStore
from service.store.moving import Moves
from service.store.protocol import Store

CALL_TIMEOUT_S = 60.0
"""For one call of Milvus: nobody waits, and a thousand rows may be megabytes."""

Place = Path | str


class MovingStore(Store, Protocol):
    """A store, whichever it is."""

    @property
    def moves(self) -> Moves[Any]:
        """Its collections on their way to another encoder."""
        ...


def place_from(text: str) -> Place:
    """A folder, or a Milvus address as it is."""
    return text if text.startswith(("http://", "https://")) else Path(text)


def opened(place: Place) -> MovingStore:
    """To be closed. Who may enter a Milvus server, and how it indexes, is as in the service."""
    if isinstance(place, Path):
        return LocalStore(place)
    from service.store.milvus.store import MilvusStore  # noqa: PLC0415 - brings grpc

    settings = Settings()
    return MilvusStore(
        place,
        token=settings.milvus_token.get_secret_value(),
        database=settings.milvus_database,
        index=settings.milvus_index,
        timeout_s=CALL_TIMEOUT_S,
    )

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.store.milvus.store import MilvusStore

from ..conftest import emptied
from .server import MilvusServer


@pytest.fixture
def milvus_store(milvus_server: MilvusServer) -> Iterator[MilvusStore]:
    """On the server that all tests share, without collections."""
    store = MilvusStore(milvus_server.uri)
    emptied(store)
    yield store
    store.close()

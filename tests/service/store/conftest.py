"""The stores that are tested, and the contract's tests of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store.local import LocalStore
from service.store.milvus.store import MilvusStore
from service.store.protocol import Store

from .milvus.server import MilvusServer
from .reference import ReferenceStore


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory) -> Iterator[MilvusServer]:
    server = MilvusServer(tmp_path_factory.mktemp("milvus") / "data")
    server.start()
    yield server
    server.kill()


def emptied(store: Store) -> Store:
    for info in store.list():
        store.drop(info.name)
    return store


Factory = Callable[[Path, pytest.FixtureRequest], Store]
KEEP_BACKUPS: dict[str, Factory] = {
    "local": lambda root, _: LocalStore(root, threads=2),
    "reference": lambda root, _: ReferenceStore(),
}
FACTORIES: dict[str, Factory] = KEEP_BACKUPS | {
    "milvus": lambda _, request: emptied(MilvusStore(request.getfixturevalue("milvus_server").uri)),
}


@pytest.fixture(params=FACTORIES)
def store(request, tmp_path) -> Iterator[Store]:
    """Each store there is; one that is added to FACTORIES has to pass the same tests."""
    made = FACTORIES[request.param](tmp_path / "store", request)
    yield made
    made.close()


@pytest.fixture(params=KEEP_BACKUPS)
def backing_store(request, tmp_path) -> Iterator[Store]:
    """Each store that keeps backups."""
    made = KEEP_BACKUPS[request.param](tmp_path / "store", request)
    yield made
    made.close()

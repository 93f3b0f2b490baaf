"""The stores that are tested, and the contract's tests of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store.local import LocalStore
from service.store.protocol import Store

from .reference import ReferenceStore

FACTORIES: dict[str, Callable[[Path], Store]] = {
    "local": lambda root: LocalStore(root, threads=2),
    "reference": lambda root: ReferenceStore(),
}


@pytest.fixture(params=FACTORIES)
def store(request, tmp_path) -> Iterator[Store]:
    """Each store there is; one that is added to FACTORIES has to pass the same tests."""
    made = FACTORIES[request.param](tmp_path / "store")
    yield made
    made.close()

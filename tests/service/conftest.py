"""Apps for tests: a fake encoder behind the real HTTP, batcher and store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mexma.encoder import Encoder
from service.app import create_app
from service.languages import LanguageDetector
from service.settings import Settings
from service.store.local import LocalStore
from service.store.protocol import Store
from tests.fakes import FakeEncoder

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="session")
def detector() -> LanguageDetector:
    """Loaded once: it takes as long to load as a whole test."""
    return LanguageDetector()


@pytest.fixture
def make_client(tmp_path: Path, detector: LanguageDetector) -> Iterator[MakeClient]:
    """Start an app (`make_client(encoder, max_request_items=3)`) and get a client to it."""
    with ExitStack() as stack:

        def make(
            encoder: Encoder | None = None,
            *,
            further: Sequence[Encoder] = (),
            store: Store | None = None,
            load: Callable[[Path], Encoder] | None = None,
            **settings: Any,
        ) -> TestClient:
            chosen = Settings(
                **{"demo": False, "canary_every_s": 0, "data_dir": tmp_path / "data", **settings}
            )
            store = store or LocalStore(chosen.data_dir)
            app = create_app(
                chosen,
                encoder=encoder or FakeEncoder(),
                store=store,
                detector=detector,
                further=further,
                load=load,
            )
            client = stack.enter_context(TestClient(app))
            while client.get("/health/ready").json()["reason"] == "starting":
                pass
            return client

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client to an app with the fake encoder (dim 16, 64 tokens of one byte each)."""
    return make_client()

"""An app with keys, for every test here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.security.access import Guard
from service.security.audit import Audit
from service.security.keys import ROLES, Key, KeyFile, new_key, write_keys
from service.settings import Settings
from service.store.local import LocalStore
from tests.fakes import FakeEncoder


class Guarded:
    """An app with keys, and a key of each role."""

    def __init__(self, folder: Path, detector, *, tokens_per_minute: int | None = None, **settings):
        self.file = folder / "keys.json"
        self.encoder = FakeEncoder()
        self.given: dict[str, str] = {}
        self.kept: list[Key] = []
        for role in ROLES:
            given, key = new_key(f"{role}-client", role, tokens_per_minute=tokens_per_minute)
            self.given[role] = given
            self.kept.append(key)
        write_keys(self.file, self.kept)
        self.now = 1000.0
        self.keys = KeyFile(self.file, clock=lambda: self.now)
        chosen = Settings(
            **{"demo": False, "canary_every_s": 0, "data_dir": folder / "data", **settings}
        )
        self.audit = folder / "audit.log"
        app = create_app(
            chosen,
            encoder=self.encoder,
            store=LocalStore(chosen.data_dir),
            detector=detector,
            guard=Guard(self.keys, origins=chosen.cors_origins),
            audit=Audit(self.audit),
        )
        self.client = TestClient(app)

    def ask(self, method: str, path: str, role: str | None = None, **arguments):
        headers = dict(arguments.pop("headers", {}))
        if role is not None:
            headers["authorization"] = f"Bearer {self.given[role]}"
        return self.client.request(method, path, headers=headers, **arguments)

    def acts(self) -> list[dict]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture
def make_guarded(tmp_path, detector):
    opened = []

    def make(**settings) -> Guarded:
        made = Guarded(tmp_path, detector, **settings)
        made.client.__enter__()
        opened.append(made.client)
        while made.client.get("/health/ready").json()["reason"] == "starting":
            pass
        return made

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def guarded(make_guarded) -> Guarded:
    return make_guarded()

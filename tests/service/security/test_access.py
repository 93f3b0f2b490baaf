"""Keys, roles, quotas, origins and the audit log, attacked over HTTP."""

from __future__ import annotations

import json
import stat
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mexma.errors import KeyFileError, QuotaExceeded
from service.app import create_app
from service.security import keys_command
from service.security.access import RULES, Guard, role_for
from service.security.audit import Audit
from service.security.keys import ROLES, Key, KeyFile, new_key, read_keys, write_keys
from service.security.quotas import Bucket
from service.settings import Settings
from service.store.local import LocalStore
from tests.fakes import FakeEncoder

# One request for each route of the OpenAPI document, with the role it needs.
ROUTES: dict[tuple[str, str], str | None] = {
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/metrics"): "metrics",
    ("GET", "/info"): "read",
    ("GET", "/v1/models"): "read",
    ("POST", "/v1/embeddings"): "read",
    ("POST", "/embed"): "read",
    ("GET", "/v1/collections"): "read",
    ("GET", "/v1/collections/{name}"): "read",
    ("PUT", "/v1/collections/{name}"): "write",
    ("DELETE", "/v1/collections/{name}"): "admin",
    ("POST", "/v1/collections/{name}/documents"): "write",
    ("DELETE", "/v1/collections/{name}/documents"): "write",
    ("POST", "/v1/collections/{name}/documents/count"): "read",
    ("POST", "/v1/collections/{name}/documents/scroll"): "read",
    ("GET", "/v1/collections/{name}/documents/{document_id}"): "read",
    ("DELETE", "/v1/collections/{name}/documents/{document_id}"): "write",
    ("POST", "/v1/collections/{name}/search"): "read",
    ("GET", "/v1/collections/{name}/migration"): "read",
    ("POST", "/v1/collections/{name}/migration"): "admin",
    ("DELETE", "/v1/collections/{name}/migration"): "admin",
    ("POST", "/v1/collections/{name}/migration/cut-over"): "admin",
    ("POST", "/v1/collections/{name}/migration/rollback"): "admin",
    ("POST", "/v1/collections/{name}/migration/retire"): "admin",
    ("GET", "/v1/collections/{name}/snapshots"): "read",
    ("POST", "/v1/collections/{name}/snapshots"): "admin",
    ("DELETE", "/v1/collections/{name}/snapshots/{snapshot_id}"): "admin",
    ("POST", "/v1/collections/{name}/snapshots/{snapshot_id}/restore"): "admin",
}


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


def filled(path: str) -> str:
    return path.format(name="c", document_id="a/b", snapshot_id="s")


# Roles


def test_every_route_of_the_service_is_in_the_table_or_for_administrators(guarded):
    paths = guarded.client.get("/openapi.json").json()["paths"]
    found = {(m.upper(), p) for p, methods in paths.items() for m in methods}
    for method, path in found - set(ROUTES):
        assert role_for(method, filled(path)) is not None, f"{method} {path} is open to everybody"
    assert set(ROUTES) <= found
    for (method, path), role in ROUTES.items():
        assert role_for(method, filled(path)) == role, f"{method} {path}"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_answers_its_role_and_those_above_and_nobody_else(guarded, method, path):
    needed = ROUTES[method, path]
    answers = {role: guarded.ask(method, filled(path), role, json={}) for role in (None, *ROLES)}
    for role, answer in answers.items():
        if needed is None or (role is not None and ROLES.index(role) >= ROLES.index(needed)):
            assert answer.status_code not in (401, 403), (role, answer.text)
        else:
            assert answer.status_code == (401 if role is None else 403), (role, answer.text)
            assert "error" in answer.json()
    if needed is not None:
        assert answers[None].headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("POST", "/v1/collections/c/documents/count/"),
        ("PATCH", "/v1/embeddings"),
        ("POST", "/metrics"),
        ("GET", "//metrics"),
        ("GET", "/health/live/"),
        ("GET", "/health/../metrics"),
        ("GET", "/docs/../v1/collections"),
        ("GET", "/swagger/a/b"),
        ("DELETE", "/v1/collections"),
        ("OPTIONS", "/v1/embeddings"),
    ],
)
def test_what_is_not_in_the_table_is_for_administrators(method, path):
    assert role_for(method, path) == "admin"


def test_rules_name_roles_that_there_are():
    assert {role for _, _, role in RULES} <= {None, *ROLES}


def test_the_api_s_own_documentation_asks_for_the_key(guarded):
    document = guarded.client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for (method, path), role in ROUTES.items():
        answers = document["paths"][path][method.lower()]["responses"]
        assert ({"401", "403"} <= set(answers)) == (role is not None), path


# Keys


def test_keys_that_are_none_are_refused_alike(guarded):
    right = guarded.given["admin"]
    wrong = [
        "", "Bearer", "Bearer ", f"Basic {right}", right, f"Bearer {right}x", f"Bearer {right[:-1]}",
        f"Bearer {right.upper()}", "Bearer mexma_00000000_" + "A" * 43, "Bearer " + "é" * 50,
        f"Bearer {guarded.kept[-1].hash}", "Bearer " + "x" * 60_000,
    ]  # fmt: skip
    for header in wrong:
        answer = guarded.client.get("/v1/models", headers={"authorization": header.encode("utf-8")})
        assert answer.status_code == 401, header[:60]
    for header in (f"Bearer {right}", f"bearer {right}", f"Bearer  {right} "):
        answer = guarded.client.get("/v1/models", headers={"authorization": header})
        assert answer.status_code == 200, header


def test_no_key_means_that_the_body_is_not_read(guarded):
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 1000

    answer = guarded.client.post(
        "/v1/embeddings", content=endless(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 401
    assert answer.headers["connection"] == "close"


def test_the_file_holds_no_key_and_neither_does_the_log(guarded, caplog):
    caplog.set_level("DEBUG")
    for role in (None, *ROLES):
        guarded.ask("DELETE", "/v1/collections/c", role)
    written = guarded.file.read_text() + guarded.audit.read_text() + caplog.text
    for given in guarded.given.values():
        assert given not in written
        assert given.rsplit("_", 1)[1] not in written


def test_a_key_is_compared_in_constant_time_and_an_unknown_id_is_compared_too(guarded, monkeypatch):
    """By construction: what is compared is always two digests of one length, by hmac."""
    compared = []

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return False

    monkeypatch.setattr("service.security.keys.hmac.compare_digest", compare)
    guarded.ask("GET", "/v1/models", "read")
    guarded.client.get("/v1/models", headers={"authorization": "Bearer mexma_ffffffff_" + "A" * 43})
    guarded.client.get("/v1/models", headers={"authorization": "Bearer short"})
    assert compared == [(64, 64)] * 3


def test_keys_rotate_while_requests_go_on(guarded):
    assert guarded.ask("GET", "/v1/models", "read").status_code == 200
    old = guarded.given["read"]
    guarded.given["read"], key = new_key("read-client", "read")
    write_keys(guarded.file, [*guarded.kept, key])
    guarded.now += 2
    assert guarded.ask("GET", "/v1/models", "read").status_code == 200
    with_old = {"authorization": f"Bearer {old}"}
    assert guarded.client.get("/v1/models", headers=with_old).status_code == 200
    write_keys(guarded.file, [key])
    guarded.now += 2
    assert guarded.client.get("/v1/models", headers=with_old).status_code == 401
    assert guarded.ask("GET", "/v1/models", "read").status_code == 200


@pytest.mark.parametrize("content", ["", "{", '{"keys": [{}]}', None])
def test_a_broken_file_changes_nothing_and_is_loud(guarded, content, caplog):
    if content is None:
        guarded.file.unlink()
    else:
        guarded.file.write_text(content)
    guarded.now += 2
    assert guarded.ask("GET", "/v1/models", "read").status_code == 200
    assert "mexma_api_keys_valid 0.0" in guarded.ask("GET", "/metrics", "metrics").text
    assert "the keys stay as they were" in caplog.text
    write_keys(guarded.file, guarded.kept)
    guarded.now += 2
    assert guarded.ask("GET", "/v1/models", "read").status_code == 200
    assert "mexma_api_keys_valid 1.0" in guarded.ask("GET", "/metrics", "metrics").text


def test_a_key_ends_when_it_expires(tmp_path):
    given, key = new_key("c", "read")
    write_keys(tmp_path / "k", [Key(**{**vars(key), "expires": 2000.0})])
    now = 1999.0
    keys = KeyFile(tmp_path / "k", clock=lambda: now)
    assert keys.find(given) is not None
    now = 2000.0
    assert keys.find(given) is None


def test_a_clock_that_jumps_neither_locks_out_nor_lets_in(guarded):
    for jump in (-86_400.0, 10 * 86_400.0, -1e9, 2e9):
        guarded.now += jump
        assert guarded.ask("GET", "/v1/models", "read").status_code == 200
        write_keys(guarded.file, guarded.kept[1:])  # no key of role metrics
        guarded.now += 2
        assert guarded.ask("GET", "/metrics", "metrics").status_code == 401
        write_keys(guarded.file, guarded.kept)
        guarded.now -= 3600
        assert guarded.ask("GET", "/metrics", "metrics").status_code == 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"role": "root"}, "role must be"),
        ({"hash": "x"}, "hash must be"),
        ({"name": "a b"}, "name must be"),
        ({"id": "1"}, "id must be"),
        ({"tokens_per_minute": 0}, "tokens_per_minute must be"),
        ({"tokens_per_minute": True}, "tokens_per_minute must be"),
        ({"expires": "soon"}, "expires must be"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_at_start(tmp_path, change, says):
    _, key = new_key("c", "read")
    (tmp_path / "k").write_text(json.dumps({"keys": [vars(key) | change]}))
    with pytest.raises(KeyFileError, match=says):
        KeyFile(tmp_path / "k")


def test_two_keys_of_one_id_are_refused(tmp_path):
    _, key = new_key("c", "read")
    write_keys(tmp_path / "k", [key, key])
    with pytest.raises(KeyFileError, match="once"):
        read_keys(tmp_path / "k")


# The command


def test_the_command_makes_lists_and_revokes(tmp_path, capsys):
    file = tmp_path / "keys.json"
    keys_command.main([str(file), "create", "app", "--role", "write", "--tokens-per-minute", "500"])
    given = capsys.readouterr().out.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys_command.main([str(file), "create", "app", "--expires", "2031-05-06"])
    second = capsys.readouterr().out.strip()
    found = KeyFile(file).find(given)
    assert (found.name, found.role, found.tokens_per_minute) == ("app", "write", 500)
    keys_command.main([str(file), "list"])
    shown = capsys.readouterr().out
    assert "2031-05-06" in shown
    assert given not in shown
    file.chmod(0o640)
    keys_command.main([str(file), "revoke", found.id])
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    keys = KeyFile(file)
    assert keys.find(given) is None
    assert keys.find(second) is not None


@pytest.mark.parametrize(
    "arguments",
    [["create", "a b"], ["revoke", "00000000"], ["create", "a", "--tokens-per-minute", "0"]],
)
def test_the_command_refuses_in_a_sentence(tmp_path, arguments):
    file = tmp_path / "keys.json"
    write_keys(file, [])
    with pytest.raises(SystemExit, match=r"^mexma-keys: "):
        keys_command.main([str(file), *arguments])


# Quotas


def test_a_bucket_grants_a_minute_s_worth_and_says_when_the_rest_comes():
    now = 0.0
    bucket = Bucket(600, clock=lambda: now)
    bucket.take(600)
    with pytest.raises(QuotaExceeded) as refused:
        bucket.take(50)
    assert refused.value.retry_after_s == pytest.approx(5)
    now += refused.value.retry_after_s - 0.01
    with pytest.raises(QuotaExceeded):
        bucket.take(50)
    now += 0.02
    bucket.take(50)


def test_a_request_larger_than_a_minute_s_worth_is_granted_once_and_paid_for():
    now = 0.0
    bucket = Bucket(600, clock=lambda: now)
    bucket.take(1800)
    with pytest.raises(QuotaExceeded) as refused:
        bucket.take(1)
    assert refused.value.retry_after_s == pytest.approx(120.1)
    assert bucket.level() == 0


def test_a_client_over_its_quota_gets_429_and_is_served_when_it_was_told(make_guarded):
    guarded = make_guarded(tokens_per_minute=6000)
    body = {"input": ["x" * 62] * 80}  # 64 tokens each: 5120
    first = guarded.ask("POST", "/v1/embeddings", "read", json=body)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "6000"
    assert 880 <= int(first.headers["x-ratelimit-remaining-tokens"]) <= 1000
    small = {"input": ["x" * 62] * 20}  # 1280
    refused = guarded.ask("POST", "/v1/embeddings", "read", json=small)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "quota_exceeded")
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 0 < wait_ms <= 4000
    assert int(refused.headers["retry-after"]) == -(-wait_ms // 1000)
    assert guarded.ask("POST", "/v1/embeddings", "write", json=small).status_code == 200
    assert 'mexma_refused_total{reason="quota"} 1.0' in guarded.ask("GET", "/metrics", "admin").text
    time.sleep(wait_ms / 1000)
    assert guarded.ask("POST", "/v1/embeddings", "read", json=small).status_code == 200


@pytest.mark.parametrize(
    "path", ["/embed", "/v1/collections/c/search", "/v1/collections/c/documents"]
)
def test_a_quota_holds_on_every_way_to_the_engine(make_guarded, path):
    guarded = make_guarded(tokens_per_minute=100)
    assert guarded.ask("PUT", "/v1/collections/c", "admin").status_code == 200
    texts = ["x" * 62] * 2
    body = {
        "/embed": {"inputs": texts},
        "/v1/collections/c/search": {"queries": texts},
        "/v1/collections/c/documents": {
            "documents": [{"id": str(i), "text": t, "lang": "en"} for i, t in enumerate(texts)]
        },
    }[path]
    assert guarded.ask("POST", path, "admin", json=body).status_code == 200
    refused = guarded.ask("POST", path, "admin", json=body)
    assert refused.status_code == 429, refused.text
    assert int(refused.headers["retry-after-ms"]) > 0


def test_a_quota_holds_for_a_client_whose_headers_say_nothing(make_guarded):
    """The service's own work is free; who looks like it is not."""
    guarded = make_guarded(tokens_per_minute=100, client_header="x-client")
    for lane, role in ((None, "read"), ("interactive", "write"), ("bulk", "admin")):
        headers = {"x-lane": lane} if lane else {}
        asked = {"json": {"input": ["x" * 62] * 2}, "headers": headers}
        assert guarded.ask("POST", "/v1/embeddings", role, **asked).status_code == 200
        assert guarded.ask("POST", "/v1/embeddings", role, **asked).status_code == 429


def test_what_the_queue_refuses_is_not_charged(make_guarded):
    guarded = make_guarded(tokens_per_minute=6000, max_queue_tokens=10)
    guarded.encoder.gate.clear()
    bodies = ({"input": "running"}, {"input": "waiting here"})
    waiting = [
        threading.Thread(
            target=guarded.ask, args=("POST", "/v1/embeddings", "read"), kwargs={"json": b}
        )
        for b in bodies
    ]
    waiting[0].start()
    while len(guarded.encoder.batches) < 2:  # the first was the warm-up
        pass
    waiting[1].start()
    while "mexma_queue_items 1.0" not in guarded.ask("GET", "/metrics", "metrics").text:
        pass
    before = int(guarded.ask("GET", "/info", "read").headers["x-ratelimit-remaining-tokens"])
    refused = guarded.ask("POST", "/v1/embeddings", "read", json={"input": "one too many"})
    guarded.encoder.gate.set()
    for thread in waiting:
        thread.join()
    assert refused.status_code == 503
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) >= before


def test_keys_of_one_client_share_its_quota(make_guarded):
    guarded = make_guarded(tokens_per_minute=100)
    guarded.given["write"], key = new_key("read-client", "read", tokens_per_minute=100)
    write_keys(guarded.file, [*guarded.kept, key])
    guarded.now += 2
    body = {"input": ["x" * 62]}
    assert guarded.ask("POST", "/v1/embeddings", "read", json=body).status_code == 200
    assert guarded.ask("POST", "/v1/embeddings", "write", json=body).status_code == 429


# The audit log


def test_an_administrator_s_act_is_on_record_before_and_after(guarded):
    guarded.ask("PUT", "/v1/collections/c", "write")
    guarded.ask("DELETE", "/v1/collections/c", "admin", headers={"x-request-id": "r-1"})
    asked, done = guarded.acts()
    admin = guarded.kept[-1]
    expected = {
        "request_id": "r-1", "client": "admin-client", "key": admin.id, "method": "DELETE",
        "path": "/v1/collections/c",
    }  # fmt: skip
    assert {k: v for k, v in asked.items() if k != "time"} == {"phase": "asked"} | expected
    assert {k: v for k, v in done.items() if k != "time"} == {
        "phase": "done", "status": 204
    } | expected  # fmt: skip
    assert asked["time"] <= done["time"]
    assert stat.S_IMODE(guarded.audit.stat().st_mode) == 0o600


def test_what_others_do_or_try_is_not_an_administrator_s_act(guarded):
    guarded.ask("GET", "/v1/models", "admin")
    guarded.ask("DELETE", "/v1/collections/c", "write")
    guarded.ask("DELETE", "/v1/collections/c")
    assert guarded.acts() == []


def test_an_act_that_cannot_be_recorded_is_not_done(guarded, monkeypatch):
    guarded.ask("PUT", "/v1/collections/c", "write")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.security.audit.os.write", full)
    answer = guarded.ask("DELETE", "/v1/collections/c", "admin")
    monkeypatch.undo()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "audit_error"
    assert guarded.ask("GET", "/v1/collections/c", "read").status_code == 200
    assert 'mexma_refused_total{reason="audit"} 1.0' in guarded.ask("GET", "/metrics", "admin").text


# Browsers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://testserver.evil.example"]
)
def test_pages_of_other_origins_can_neither_change_nor_read(make_client, origin):
    client = make_client()
    client.put("/v1/collections/c")
    headers = {"origin": origin}
    for method, path in (
        ("POST", "/v1/collections/c/snapshots"),
        ("DELETE", "/v1/collections/c"),
        ("POST", "/v1/embeddings"),
    ):
        answer = client.request(method, path, headers=headers, json={"input": "x"})
        assert answer.status_code == 403
        assert "MEXMA_CORS_ORIGINS" in answer.json()["error"]["message"]
    read = client.get("/v1/collections/c", headers=headers)
    preflight = client.options(
        "/v1/embeddings", headers=headers | {"access-control-request-method": "POST"}
    )
    for answer in (read, preflight):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.get("/v1/collections/c").status_code == 200


def test_our_own_page_may_call_and_so_may_origins_that_are_listed(make_client):
    client = make_client(cors_origins=("https://app.example",))
    own = {"origin": "http://testserver"}
    assert client.post("/v1/embeddings", headers=own, json={"input": "x"}).status_code == 200
    listed = {"origin": "https://app.example"}
    answer = client.post("/v1/embeddings", headers=listed, json={"input": "x"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    preflight = client.options(
        "/v1/embeddings",
        headers=listed
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    other = {"origin": "https://evil.example"}
    assert client.post("/v1/embeddings", headers=other, json={"input": "x"}).status_code == 403

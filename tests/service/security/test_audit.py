"""The audit log: an administrator's acts are on record, or not done."""

from __future__ import annotations

import stat


def test_an_administrator_s_act_is_on_record_before_and_after(guarded):
    guarded.ask("PUT", "/v1/collections/c", "write")
    guarded.ask("DELETE", "/v1/collections/c", "admin", headers={"x-request-id": "r-1"})
    asked, done = guarded.acts()
    admin = guarded.kept[-1]
    expected = {
        "request_id": "r-1", "client": "admin-client", "key": admin.id, "method": "DELETE",
        "path": "/v1/collections/c", "address": "testclient",
    }  # fmt: skip
    assert {k: v for k, v in asked.items() if k != "time"} == {"phase": "asked"} | expected
    assert {k: v for k, v in done.items() if k != "time"} == {
        "phase": "done", "status": 204
    } | expected  # fmt: skip
    assert asked["time"] <= done["time"]
    assert stat.S_IMODE(guarded.audit.stat().st_mode) == 0o600


def test_a_reload_is_on_record(guarded):
    for path in ("/v1/models/reload", "/v1/models/rollback"):
        assert guarded.ask("POST", path, "write", json={}).status_code == 403
        guarded.ask("POST", path, "admin", json={})
    assert [(a["phase"], a["path"].rpartition("/")[2]) for a in guarded.acts()] == [
        ("asked", "reload"), ("done", "reload"), ("asked", "rollback"), ("done", "rollback"),
    ]  # fmt: skip


def test_what_others_do_or_try_is_not_an_administrator_s_act(guarded):
    guarded.ask("GET", "/v1/models", "admin")
    guarded.ask("DELETE", "/v1/collections/c", "write")
    guarded.ask("DELETE", "/v1/collections/c")
    assert guarded.acts() == []


def test_what_is_not_there_is_nobody_s_act(guarded):
    for path in ("/favicon.ico", "/v1/collection"):
        assert guarded.ask("POST", path, "admin", json={}).status_code == 404
        assert guarded.ask("POST", path, "write", json={}).status_code == 404
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

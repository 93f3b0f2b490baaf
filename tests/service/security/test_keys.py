"""Keys, the file of them and its command, attacked over HTTP."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from mexma.errors import KeyFileError
from service.security import keys_command
from service.security.keys import ROLES, Key, KeyFile, new_key, read_keys, write_keys


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
        assert given.split("_", 2)[2] not in written


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


def test_a_further_key_of_a_name_has_its_quota(tmp_path, capsys):
    """Else rotating a key as the runbook says would lift it."""
    file = tmp_path / "keys.json"

    def create(*arguments: str) -> str:
        keys_command.main([str(file), "create", *arguments])
        out, err = capsys.readouterr()
        assert KeyFile(file).find(out.strip()) is not None  # nothing but the key, for scripts
        return err

    def quotas(name: str) -> list[int | None]:
        return [k.tokens_per_minute for k in read_keys(file).values() if k.name == name]

    assert create("small", "--tokens-per-minute", "20") == ""
    assert create("other") == ""
    assert create("small") == "small has a quota of 20 tokens a minute, and so has the new key\n"
    assert quotas("small") == [20, 20]
    said = create("small", "--tokens-per-minute", "30")
    assert said == "all keys of small have a quota of 30 tokens a minute now, 2 had not\n"
    assert quotas("small") == [30, 30, 30]
    assert "no quota" in create("small", "--tokens-per-minute", "none")
    assert quotas("small") == [None] * 4
    assert quotas("other") == [None]


def test_of_several_quotas_that_a_name_has_the_strictest_is_taken(tmp_path, capsys):
    file = tmp_path / "keys.json"
    write_keys(file, [new_key("a", "read", tokens_per_minute=q)[1] for q in (50, 40, None)])
    keys_command.main([str(file), "create", "a"])
    assert {key.tokens_per_minute for key in read_keys(file).values()} == {40}
    assert "now, 2 had not" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "a b"],
        ["revoke", "00000000"],
        ["create", "a", "--tokens-per-minute", "0"],
        ["create", "a", "--tokens-per-minute", "-1"],
    ],
)
def test_the_command_refuses_in_a_sentence(tmp_path, arguments):
    file = tmp_path / "keys.json"
    write_keys(file, [])
    with pytest.raises(SystemExit, match=r"^mexma-keys: "):
        keys_command.main([str(file), *arguments])


@pytest.mark.parametrize("ago", [timedelta(0), timedelta(days=1), timedelta(days=9999)])
def test_no_key_is_made_that_has_expired(tmp_path, ago):
    file = tmp_path / "keys.json"
    write_keys(file, [])
    day = (datetime.now(UTC) - ago).strftime("%Y-%m-%d")
    with pytest.raises(SystemExit, match=f"--expires {day} has begun.*a day after today"):
        keys_command.main([str(file), "create", "app", "--expires", day])
    assert read_keys(file) == {}
    tomorrow = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%d")
    keys_command.main([str(file), "create", "app", "--expires", tomorrow])
    assert len(read_keys(file)) == 1

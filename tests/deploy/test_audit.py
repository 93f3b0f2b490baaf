"""The audit finds what is known, and never says "nothing known" when it has asked nobody."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from deploy import audit
from deploy.audit import KNOWN, NotAudited, concerns, folder, service

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def advisory(name: str, *, fixed: str = "2.0", modified: datetime = NOW, **more: object) -> dict:
    return {
        "id": f"PYSEC-{name}",
        "modified": modified.isoformat(),
        "affected": [
            {
                "package": {"name": name, "ecosystem": "PyPI"},
                "ranges": [
                    {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}
                ],
            }
        ],
        **more,
    }


@pytest.fixture
def advisories(tmp_path):
    def add(name: str, **how) -> Path:
        file = tmp_path / "vulns" / name / "one.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(advisory(name, **how), sort_keys=False))
        return tmp_path

    add(KNOWN[0], fixed="2.11.3")
    return add


def test_what_is_known_is_found_and_what_is_mended_is_not(advisories):
    path = advisories("Some_Package")
    asked = [("some-package", "1.9"), ("some-package", "2.0"), ("other", "1.0")]
    found = audit.audit(asked, folder(path, now=NOW))
    assert found == {("some-package", "1.9"): ["PYSEC-Some_Package"]}


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.9", False), ("1.0", True), ("1.5", True), ("1.6", False), ("2.1", True), ("2.3", False)],
)
def test_ranges_and_lists_of_versions(version, expected):
    made = advisory("x")
    made["affected"][0]["ranges"][0]["events"] = [
        {"introduced": "1.0"}, {"fixed": "1.6"}, {"introduced": "2.0"}, {"last_affected": "2.2"},
    ]  # fmt: skip
    assert concerns(made, "x", version) == expected
    made["affected"][0]["versions"] = ["2.3"]
    assert concerns(made, "x", "2.3")
    assert not concerns(made | {"withdrawn": "2026-01-01T00:00:00Z"}, "x", version)


def test_a_folder_without_advisories_or_with_old_ones_has_audited_nothing(advisories, tmp_path):
    with pytest.raises(NotAudited, match="holds no advisories"):
        folder(tmp_path / "nowhere")
    path = advisories("x", modified=NOW - timedelta(days=90))
    with pytest.raises(NotAudited, match="bring it up to date"):
        folder(path, now=NOW + timedelta(days=31))


def test_a_source_that_knows_nothing_has_audited_nothing(advisories):
    path = advisories(KNOWN[0], fixed="1.0")  # it has forgotten what everybody knows
    with pytest.raises(NotAudited, match="knows none of jinja2"):
        audit.audit([("x", "1.0")], folder(path, now=NOW))
    with pytest.raises(NotAudited, match="nothing to ask about"):
        audit.audit([], folder(path, now=NOW))


def fake_pip_audit(folder: Path, body: str) -> list[str]:
    """A program in the place of pip-audit; `packages` are those it is asked about."""
    program = folder / "fake.py"
    program.write_text(
        "import json, sys\n"
        "lines = open(sys.argv[sys.argv.index('-r') + 1]).read().split()\n"
        "packages = [line.split('==') for line in lines]\n" + body
    )
    return [sys.executable, str(program)]


KNOWS = """
def vulns(name, version):
    return [{"id": "CVE-1"}] if (name, version) in {("jinja2", "2.11.2"), ("bad", "1.0")} else []
print(json.dumps({"dependencies": [
    {"name": n.upper(), "version": v, "vulns": vulns(n, v)} for n, v in packages]}))
sys.exit(1)
"""


def test_what_the_index_knows_is_found(tmp_path):
    asked = [("bad", "1.0"), ("good", "1.0")]
    found = audit.audit(asked, service(fake_pip_audit(tmp_path, KNOWS)))
    assert found == {("bad", "1.0"): ["CVE-1"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit('ERROR: Failed to resolve host')", "Failed to resolve host"),
        ("print('[]')", "no answer"),
        (
            "print(json.dumps({'dependencies': [{'name': n, 'version': v, 'vulns': []} "
            "for n, v in packages]}))",
            "knows none of jinja2",
        ),
        (
            "print(json.dumps({'dependencies': [{'name': n, 'skip_reason': 'x'} "
            "for n, v in packages]}))",
            "no answer for jinja2",
        ),
    ],
)
def test_an_index_that_does_not_answer_has_audited_nothing(
    tmp_path, monkeypatch, capsys, body, says
):
    command = fake_pip_audit(tmp_path, body)
    monkeypatch.setattr(audit, "service", lambda: service(command))
    monkeypatch.setattr(audit, "served", lambda: [("x", "1.0")])
    assert audit.main([]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("audit: NOTHING WAS AUDITED: ")
    assert says in said.err
    assert len(said.err.splitlines()) == 1


def test_the_status_says_what_came_of_it(advisories, monkeypatch, capsys):
    path = advisories("bad", modified=datetime.now(UTC))
    monkeypatch.setattr(audit, "served", lambda: [("good", "1.0")])
    assert audit.main(["--advisories", str(path)]) == 0
    assert "1 packages asked about, 0 known" in capsys.readouterr().out
    monkeypatch.setattr(audit, "served", lambda: [("good", "1.0"), ("bad", "1.0")])
    assert audit.main(["--advisories", str(path)]) == 1
    assert "bad 1.0: PYSEC-bad" in capsys.readouterr().out


def test_it_asks_about_all_that_is_served():
    bill = audit.bill()
    asked = audit.served()
    assert len(asked) == sum(c["type"] == "library" for c in bill["components"]) > 20
    assert "onnxruntime" in dict(asked)

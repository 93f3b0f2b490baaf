"""Documentation cannot lie: its blocks run, its links lead somewhere, its tables are the code's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import pytest

from docs.reference import PAGES, literal_values, settings_page
from mexma.session import Engine
from service.settings import Settings
from service.store.admission import MAX_ID_BYTES
from tests.conftest import ROOT, Server
from training.recipes import RECIPES

PROSE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy/RUNBOOK.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "models/default/README.md",
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("file", sorted(PAGES))
def test_reference_pages_are_what_the_code_says(file):
    assert (ROOT / "docs" / file).read_text(encoding="utf-8") == PAGES[file](), "run: make docs"


def test_every_curl_of_the_readme_runs_and_the_demo_answers_as_shown(server: Server):
    curls = [block for block in blocks("sh") if block.startswith("curl")]
    assert len(curls) >= 4
    answers = []
    for block in curls:
        deletes = "-X DELETE" in block
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.replace(ADDRESS, server.url)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answer = json.loads(done.stdout or "{}") if deletes else json.loads(done.stdout)
        assert "error" not in answer, f"{block}\n{answer}"
        answers.append(answer)
    (shown,) = blocks("text")
    found = [
        f"{hit['cosine']:.2f}  {hit['lang']}  {hit['text']}" for hit in answers[0]["results"][0]
    ]
    assert shown.strip().splitlines() == found
    pairs = next(a for a in answers if "pairs" in a)["pairs"]
    shown_pairs = [(p["source"], p["target"], round(p["score"], 2)) for p in pairs]
    assert shown_pairs == [(1, 0, 1.97), (0, 2, 1.44)]
    assert round(pairs[0]["cosine"], 2) == 0.79
    (aligned,) = next(a for a in answers if "alignments" in a)["alignments"]
    words = {side: [w["text"] for w in aligned[side]] for side in ("source", "target")}
    shown_words = re.findall(r'"(\w+)" and "([^"]+)" (0\.\d\d)', README)
    assert len(shown_words) == 2
    for source, target, score in shown_words:
        place = (words["source"].index(source), words["target"].index(target))
        (pair,) = [p for p in aligned["pairs"] if (p["source"], p["target"]) == place]
        assert f"{pair['score']:.2f}" == score
    cats = next(a for a in reversed(answers) if "results" in a)["results"][0]
    assert [(h["lang"], h["id"], round(h["cosine"], 2)) for h in cats] == [
        ("es", "3", 0.78),
        ("fi", "1", 0.54),
        ("en", "2", 0.23),
    ]


def test_every_python_block_of_the_readme_runs(server: Server):
    for block in blocks("python"):
        subprocess.run(
            [sys.executable, "-c", block.replace(ADDRESS, server.url)], check=True, timeout=60
        )


def test_every_other_command_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    commands = [
        c for block in blocks("sh") if not block.startswith("curl") for c in block.split("\n")
    ]
    for command in filter(None, commands):
        words = [w for w in command.split() if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        if words[0] == "make":
            target = words[1].replace(".venv", "$(VENV)")
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), command
        else:
            tool = words[0].removeprefix(".venv/bin/")
            assert re.search(rf"^{tool} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), (
                command
            )


@pytest.mark.parametrize("page", PROSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_settings_and_metrics_in_prose_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
    known = {f"MEXMA_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"MEXMA_[A-Z_]*[A-Z]", text)) <= known
    metrics = set(re.findall(r"mexma_[a-z_]+", (ROOT / "docs/metrics.md").read_text()))
    assert set(re.findall(r"`(mexma_[a-z_]+)`", text)) <= metrics | set(RECIPES)


def test_the_page_of_settings_lists_the_values_of_each_that_has_a_list():
    sections = settings_page().split("## `MEXMA_")
    listed = {s.split("`")[0]: s.splitlines()[2] for s in sections if "(one of" in s}
    for value in get_args(Engine):
        assert f"`{value}`" in listed["ENGINE"]
    assert listed["LOG_FORMAT"] == "Default: `text` (one of `text`, `json`)"
    assert {"DEVICE", "MILVUS_INDEX", "LOG_LEVEL"} < listed.keys()
    assert literal_values(int | None) == literal_values(list[int]) == ()
    assert literal_values(Literal["a", "b"] | None) == ("a", "b")


def test_limits_in_the_readme_are_those_of_the_code():
    schemas = json.loads((ROOT / "docs/openapi.json").read_text())["components"]["schemas"]
    k = schemas["SearchRequest"]["properties"]["k"]
    assert f"| how many neighbours ({k['default']}, at most {k['maximum']:.0f}) |" in README
    limit = schemas["ScrollRequest"]["properties"]["limit"]
    assert f"`limit` at a time: {limit['default']}, at most {limit['maximum']:,.0f}" in README
    assert re.search(rf"ids of documents 1 to {MAX_ID_BYTES}\s+bytes of UTF-8", README)


def test_the_guide_to_milvus_names_what_brings_its_client():
    guide = (ROOT / "docs/milvus.md").read_text()
    assert "--build-arg EXTRAS=milvus" in guide
    assert (ROOT / "Dockerfile").read_text().count("$EXTRAS'.split()") == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["milvus"][0].startswith("pymilvus>")
    assert "pip install milvus-lite pymilvus" in guide
    lite = {re.split("[;<>= ]", r)[0] for r in metadata.requires("milvus-lite") or ()}
    assert "pymilvus" not in lite, "else naming both says too much"


def test_the_runbook_knows_every_reason_for_not_being_ready():
    files = (
        "app.py",
        "routes/health.py",
        "engine/watchdog.py",
        "draining.py",
        "workers/front.py",
        "workers/stand_in.py",
    )
    code = "".join((ROOT / "service" / f).read_text() for f in files)
    given = r'(?:starting = |return |starting=|Problem\(\s*|reason=)"([a-z_]+)"'
    reasons = set(re.findall(given, code))
    assert {"start_failed", "engine_stuck", "draining", "engine_away"} <= reasons
    runbook = (ROOT / "deploy/RUNBOOK.md").read_text()
    assert {r for r in reasons if f"`{r}`" not in runbook} == set()


@pytest.mark.parametrize("name", ["threats", "faults"])
def test_every_threat_and_fault_has_a_test_that_is_there(name):
    page = ROOT / f"docs/{name}.md"
    rows = [r for r in page.read_text().splitlines() if r.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        tests = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", row)
        assert tests or "`make image`" in row, row
        for test, file in tests:
            source = (page.parent / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{test} in {file}"


def test_nothing_names_a_place_or_package_host_of_one_machine():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    pattern = re.compile(rb"/(?:root|home/[a-z]+)/|://[a-z.]*(?:pypi|pythonhosted|npmjs|debian)[.]")
    for name in files:
        path = ROOT / name
        if path.suffix in {".onnx", ".data", ".npz", ".png"} or not path.is_file():
            continue
        found = pattern.search(path.read_bytes())
        assert found is None or name == "tests/test_docs.py", f"{name}: {found}"

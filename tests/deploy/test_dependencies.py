"""What is served is known: every package by version, licence and origin; and none that must not be there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from deploy import sbom
from tests.conftest import ROOT

# Strong copyleft would reach what is served with it.
REFUSED_LICENCES = re.compile(r"\b(A?GPL|SSPL|BUSL|Commons Clause)\b(?!.*\bOR\b)", re.IGNORECASE)


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    return sbom.bill()


def packages(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {canonicalize_name(c["name"]): c for c in bill["components"] if c["type"] == "library"}


def test_it_lists_what_is_served_and_nothing_else(bill):
    names = set(packages(bill))
    assert names == sbom.closure() - {"mexma"}
    assert {"onnxruntime", "faiss-cpu", "fastapi", "opentelemetry-sdk"} <= names
    assert not names & {"torch", "transformers", "onnx", "pytest", "milvus-lite"}


def test_every_version_is_locked(bill):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = {canonicalize_name(n): v for n, v in (line.split("==") for line in lines)}
    found = {name: c["version"] for name, c in packages(bill).items()}
    assert found == {name: locked.get(name) for name in found}


def test_every_package_can_be_told_by_its_url(bill):
    for name, component in packages(bill).items():
        assert component["purl"] == f"pkg:pypi/{name}@{component['version']}", name


def test_no_licence_reaches_over_what_is_served_with_it(bill):
    for name, component in packages(bill).items():
        for entry in component.get("licenses", []):
            licence = entry.get("license", {})
            text = entry.get("expression") or licence.get("id") or licence.get("name") or ""
            assert not REFUSED_LICENCES.search(text), f"{name}: {text}"
    assert REFUSED_LICENCES.search("AGPL-3.0-only")
    assert not REFUSED_LICENCES.search("LGPL-3.0-only")


def test_the_model_is_in_it_with_the_hashes_of_its_files(bill):
    (model,) = [c for c in bill["components"] if c["type"] == "machine-learning-model"]
    hashes = {f["name"]: f["hashes"][0]["content"] for f in model["components"]}
    assert set(hashes) == {"model.onnx", "tokenizer.json"}
    assert all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes.values())


def test_a_bill_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(sbom, "model_component", lambda: {"type": "soul", "name": "x"})
    with pytest.raises(ValueError, match="not CycloneDX"):
        sbom.bill()

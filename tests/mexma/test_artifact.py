"""Artifacts that are not what they claim are refused, in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mexma.artifact import (
    Manifest,
    hash_file,
    open_artifact,
    replace_directory,
    write_manifest,
)
from mexma.errors import ArtifactError
from tests.fakes import byte_tokenizer_json


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    with replace_directory(path) as folder:
        (folder / "model.onnx").write_bytes(b"a graph, for all this floor knows")
        (folder / "tokenizer.json").write_bytes(byte_tokenizer_json())
        manifest = Manifest(
            name="small", dim=8, max_tokens=32, vocabulary_size=259, pad_id=1, pooling="mean",
            precision="fp32", prefix="",
            files={name: hash_file(folder / name) for name in ("model.onnx", "tokenizer.json")},
        )  # fmt: skip
        write_manifest(folder, manifest)
    return path


def edit(path: Path, **changes) -> None:
    file = path / "manifest.json"
    raw = json.loads(file.read_text())
    raw |= changes
    file.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message, "it must say where"
    return message


def test_what_was_written_is_read(artifact):
    found = open_artifact(artifact)
    assert found.manifest.name == "small"
    assert found.fingerprint == json.loads((artifact / "manifest.json").read_text())["fingerprint"]


def test_a_flipped_byte(artifact):
    for name in ("model.onnx", "tokenizer.json"):
        file = artifact / name
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert "damaged" in refusal(artifact)
        file.write_bytes(whole)
    open_artifact(artifact)


def test_missing_and_truncated_files(artifact):
    tokenizer = artifact / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:-10])
    assert "(truncated?)" in refusal(artifact)
    tokenizer.unlink()
    assert "missing" in refusal(artifact)
    (artifact / "manifest.json").unlink()
    assert "no manifest.json" in refusal(artifact)
    assert "found none" in refusal(artifact / "nowhere")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema_version": 2}, "newer than 1"),
        ({"schema_version": "1"}, "positive integer"),
        ({"schema_version": ...}, "positive integer"),
        ({"dim": 0}, "dim must be positive"),
        ({"dim": "8"}, "wrong type"),
        ({"name": "a\nb"}, "printable"),
        ({"name": ""}, "1 to 200"),
        ({"name": "x" * 201}, "1 to 200"),
        ({"dim": True}, "wrong type"),
        ({"max_tokens": ...}, "'max_tokens' is missing"),
        ({"pooling": "max"}, "one of first_token, mean, found 'max'"),
        ({"precision": "fp8"}, "fp8"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"files": {}}, "lists no model.onnx"),
        ({"files": {"../model.onnx": {}}}, "leaves the model directory"),
        ({"files": {"model.onnx": {"sha256": "x"}}}, "malformed"),
        ({"input_names": ["one"]}, "two names"),
        ({"prefix": "query: "}, "claims fingerprint"),
        ({"max_tokens": 31}, "claims fingerprint"),
    ],
)
def test_a_manifest_that_lies_or_is_not_understood(artifact, changes, says):
    edit(artifact, **changes)
    assert says in refusal(artifact)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_not_json(artifact, content):
    (artifact / "manifest.json").write_bytes(content)
    refusal(artifact)


def test_the_fingerprint_covers_what_shapes_vectors_and_nothing_else(artifact):
    manifest = open_artifact(artifact).manifest
    for change in ({"prefix": "q"}, {"pooling": "first_token"}, {"max_tokens": 31}):
        assert replace(manifest, **change).fingerprint != manifest.fingerprint
    described = replace(manifest, quality={"accuracy": 1}, source={"x": 1}, name="other")
    assert described.fingerprint == manifest.fingerprint


def test_replacing_is_all_or_nothing(artifact):
    before = {f.name: f.read_bytes() for f in artifact.iterdir()}
    with pytest.raises(RuntimeError), replace_directory(artifact) as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise RuntimeError("the power went out")
    assert {f.name: f.read_bytes() for f in artifact.iterdir()} == before
    assert [p.name for p in artifact.parent.iterdir()] == ["model"], "nothing is left lying about"
    with replace_directory(artifact) as folder:
        (folder / "new").write_bytes(b"new")
    assert [f.name for f in artifact.iterdir()] == ["new"]
    assert [p.name for p in artifact.parent.iterdir()] == ["model"]

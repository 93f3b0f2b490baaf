"""One export of the tiny encoder for all tests of evaluation that need a subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_artifact, tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as checkpoint and as artifact with (artifact) and without token states."""
    folder = tmp_path_factory.mktemp("subjects")
    tiny_checkpoint(folder / "checkpoint")
    tiny_artifact(folder / "artifact", token_states=True)
    tiny_artifact(folder / "plain")
    return folder

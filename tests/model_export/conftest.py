"""One export of the tiny encoder per precision, shared by the tests that only look at it."""

from __future__ import annotations

import pytest

from model_export.export import Exported
from tests.tiny import tiny_artifact


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Precision -> artifact; all with token states."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {
        precision: tiny_artifact(folder / precision, precision=precision, token_states=True)
        for precision in ("fp32", "fp16", "int8", "compact")
    }

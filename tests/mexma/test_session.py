"""What the runtime may not do behind our back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

LOAD = """
from pathlib import Path
from mexma.artifact import open_artifact
from mexma.session import Session
Session(open_artifact(Path("models/default")), engine="onnxruntime")
"""


def test_loading_a_model_leaves_nothing_in_the_home_of_the_user(tmp_path: Path):
    """onnxruntime 1.32 keeps a database of events there, which it reports to its maker."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", LOAD], check=True, cwd=ROOT, env=environment | {"HOME": str(home)}
    )
    assert [*home.iterdir()] == []

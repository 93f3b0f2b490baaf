"""Commands that cannot go on: one sentence, and a status.

What `mexma-train` does is in `tests/training/test_stopping.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import evaluation.__main__ as evaluating
import model_export.__main__ as exporting


@pytest.mark.parametrize(
    ("module", "slow", "arguments", "said"),
    [
        (exporting, "load_checkpoint", ["a", "b"], "b is whole or as it was"),
        (evaluating, "read_pairs", ["a", "pairs.tsv"], "stopped"),
    ],
)
def test_ctrl_c_is_one_sentence(monkeypatch, capsys, module, slow, arguments, said):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, slow, interrupted)
    assert module.main(arguments) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("package", "lacks", "extra"),
    [
        ("training", "torch", "train"),
        ("model_export", "torch", "export"),
        ("evaluation", "sklearn", "evaluate"),
    ],
)
def test_where_only_serving_is_installed(package, lacks, extra):
    """As an interpreter sees it that has not the package."""
    hidden = (
        f"import sys, runpy; sys.modules[{lacks!r}] = None; sys.argv = ['/bin/mexma-x', '--help']; "
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden + f"runpy.run_module({package!r}, run_name='__main__')"],
        check=False, cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"mexma-x: needs {lacks}, which serving does without; install it by `make dev`, "
        f"or with this project's extra {extra}\n"
    )

"""Ctrl-C in a command: one sentence that says how to go on, and the status of a stopped program.

What `mexma-train` does is in `tests/training/test_stopping.py`.
"""

from __future__ import annotations

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

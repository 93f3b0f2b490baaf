"""A long step is never silent: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import sys

from model_export.progress import EVERY_S, Progress


def test_lines_come_first_now_and_then_and_last():
    now, lines = 0.0, []
    with Progress("proof", 100, lines.append, clock=lambda: now) as progress:
        for _ in range(50):
            progress.update(2)
            now += EVERY_S / 10
    assert lines[0] == "  proof: 2 of 100"
    assert lines[-1] == "  proof: 100 of 100"
    assert len(lines) == 6


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown, lines = Terminal(), []
    monkeypatch.setattr(sys, "stderr", shown)
    with Progress("proof", 2, lines.append) as progress:
        progress.update(2)
    assert "proof" in shown.getvalue()
    assert not lines


def test_nobody_who_did_not_ask_is_told(capsys):
    with Progress("proof", 2, None) as progress:
        progress.update(2)
    assert not any(capsys.readouterr())

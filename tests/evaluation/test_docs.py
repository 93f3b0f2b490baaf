"""What docs/evaluation.md says is so: its commands parse, its table is the code's, its examples happen."""

from __future__ import annotations

import re
import shlex

import pytest

from evaluation.__main__ import parser
from evaluation.corruption import KINDS, corrupt
from evaluation.english import OPPOSITES, VERBS
from evaluation.measure import METRICS
from tests.conftest import ROOT

PAGE = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")


def test_every_command_parses():
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = block.strip().splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "mexma-evaluate"
        parser().parse_args(arguments)


def test_every_option_exists_and_every_metric_is_described():
    options = set(re.findall(r"`(--[a-z-]+)", PAGE)) - {"--token-states"}
    assert options <= set(parser()._option_string_actions)
    assert re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) == list(METRICS)
    assert re.findall(r"^- \*\*(\w+)\*\*:", PAGE, re.MULTILINE) == list(KINDS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pair
        for pair in re.findall(r"`([^`]+)`\s+→\s+`([^`]+)`", PAGE)
        if not re.search(r"\d", pair[0]) and " " in pair[0]
    ],
)
def test_every_example_is_made(before, after):
    assert after in [c.text for c in corrupt(before, per_kind=20)]


def test_the_lists_are_about_as_long_as_said():
    said = re.search(r"some (\d+) verbs\s+and (\d+) opposites", PAGE)
    assert abs(len(VERBS) - int(said[1])) < 10
    assert abs(len(OPPOSITES) - int(said[2])) < 20

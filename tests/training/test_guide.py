"""`docs/training.md` names every recipe and only files that exist."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from training.__main__ import parser
from training.recipe import override
from training.recipes import RECIPES, tiny_cpu

GUIDE = (ROOT / "docs" / "training.md").read_text()


def test_every_recipe_is_listed_and_no_other():
    table = GUIDE.split("## Recipes")[1].split("## Data")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(RECIPES)


def test_files_exist():
    for name in re.findall(r"(?:training|tests|docs)/[\w/]+\.(?:py|md)", GUIDE):
        assert (ROOT / name).is_file(), name


def test_commands_are_commands():
    found = re.findall(r"^mexma-train (.*?)(?:\s+#.*)?$", GUIDE, re.MULTILINE)
    assert len(found) == 2
    for command in [*found, *re.findall(r"`mexma-train (.*?)`", GUIDE)]:
        arguments = parser().parse_args(command.replace("'", "").split())
        assert arguments.recipe in {*RECIPES, "resume"}
        override(tiny_cpu(), arguments.settings)

"""`mexma-train RECIPE [KEY=VALUE ...] --out DIR`: train sentence vectors, or say why not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mexma.errors import MexmaError
from training.loop import train
from training.ranks import joined
from training.recipe import override
from training.recipes import RECIPES, find_recipe


def parser() -> argparse.ArgumentParser:
    """The command line, without running it."""
    p = argparse.ArgumentParser(prog="mexma-train", description=__doc__)
    p.add_argument("recipe", help=", ".join(RECIPES))
    p.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="override the recipe's")
    p.add_argument("--out", type=Path, required=True, help="directory of this run")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, or 1 after one sentence on stderr."""
    a = parser().parse_args(arguments)
    try:
        recipe = override(find_recipe(a.recipe), a.settings)
        with joined(recipe.device) as ranks:
            final = train(recipe, a.out, ranks)
            if ranks.first:
                print(final)
    except MexmaError as error:
        print(f"mexma-train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

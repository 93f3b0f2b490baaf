"""`mexma-train RECIPE [KEY=VALUE ...] --out DIR`: train sentence vectors, or say why not.

`mexma-train resume --out DIR` goes on with the run in DIR, whatever stopped it; where its data lies
or its backbone lies elsewhere now, with data=, hold_out=, decontaminate= and backbone=.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mexma.installation import needing
from training.stopping import Stop

with (
    needing("train"),
    Stop().heeded(),
):  # torch takes seconds to import, in which Ctrl-C was a traceback
    from mexma.errors import CheckpointError, MexmaError
    from training.errors import DataError, RecipeError, RunStateError, Stopped
    from training.loop import train
    from training.ranks import joined
    from training.recipe import Recipe, override
    from training.recipes import RECIPES, find_recipe
    from training.run_state import PLACES, RECIPE

RESUME = "resume"
MAY_CHANGE = (
    "device", "workers", "attention", "recompute", "sharded", "save_every", "keep_last",
    "validate_every", "average_with_start",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line, without running it."""
    p = argparse.ArgumentParser(prog="mexma-train", description=__doc__)
    p.add_argument("recipe", help=", ".join([*RECIPES, "or resume"]))
    p.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="override the recipe's")
    p.add_argument("--out", type=Path, required=True, help="directory of this run")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0; 1 after one sentence on stderr; 130 or 143
    (128 and the signal's number) where SIGINT or SIGTERM stopped it."""
    a = parser().parse_intermixed_args(arguments)  # settings before and after --out
    stop, resume = Stop(a.out), a.recipe == RESUME
    try:
        with stop.heeded():
            recipe = recipe_of(a.out, a.settings) if resume else find_recipe(a.recipe)
            recipe = override(recipe, a.settings)
            with joined(recipe.device) as ranks:
                final = train(recipe, a.out, ranks, resume=resume, stop=stop)
                if ranks.first:
                    print(final)
    except MexmaError as error:
        # What went wrong on one rank, all are told; what is a machine's, its first process.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            moved = f"; what lies elsewhere now is told with {', '.join(f'{p}=' for p in PLACES)}"
            hint = moved if resume and isinstance(error, DataError | CheckpointError) else ""
            print(f"mexma-train: {error}{hint}", file=sys.stderr)
        return 128 + error.number if isinstance(error, Stopped) else 1
    return 0


def recipe_of(out: Path, settings: Sequence[str]) -> Recipe:
    """The recipe that the run in `out` was started with.

    Raises RunStateError where there is none, RecipeError for settings that would change what
    the run computes.
    """
    file = out / RECIPE
    try:
        raw: dict[str, Any] = json.loads(file.read_bytes())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        recipe = Recipe(**values)
    except FileNotFoundError:
        raise RunStateError(
            f"{file}: expected this file of the run to resume, found none"
        ) from None
    except OSError as error:
        raise RunStateError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise RunStateError(f"{file}: is no recipe of this version ({error})") from None
    for setting in settings:
        if (key := setting.partition("=")[0]) not in (*MAY_CHANGE, *PLACES):
            raise RecipeError(
                f"{key} cannot be changed on resuming; what can: {', '.join(MAY_CHANGE)}, and where "
                f"things lie ({', '.join(PLACES)}); to train a run further than it was to go, give "
                f"backbone={out / 'final'}, once it is there, and another --out"
            )
    return recipe


if __name__ == "__main__":
    sys.exit(main())

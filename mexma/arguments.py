"""What the commands ask of numbers on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """For `type=` of an argument: a whole number of at least so much."""

    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {found}")
        return found

    number.__name__ = "whole number"  # what argparse calls it where it is none
    return number

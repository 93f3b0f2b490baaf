"""Arrays of which each is a longer one's beginning, so that neither is copied when the other is made.

They are one-dimensional, and never changed once they are made.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def grown(old: Any, new: Any, *, anew: bool = False) -> Any:
    """`old` with `new` behind it, in the memory behind `old` where there is room.

    What lies there belongs to nothing that is in use: `old` is the newest that was made so, or what was
    made of it was given up. anew: in memory of its own, so that what is changed in it is changed for no
    other.
    """
    base, total = (old if old.base is None else old.base), len(old) + len(new)
    if anew or total > len(base):
        base = np.empty(max(1024, total + total // 2), old.dtype)
        base[: len(old)] = old
    base[len(old) : total] = new
    return base[:total]


def begins_with(longer: Any, shorter: Any) -> bool:
    """Whether the first values of `longer` are those of `shorter`: those that `grown` made of one another
    are not looked at."""
    if len(longer) < len(shorter):
        return False
    same_memory = longer.ctypes.data == shorter.ctypes.data and longer.dtype == shorter.dtype
    return same_memory or bool(np.array_equal(longer[: len(shorter)], shorter))

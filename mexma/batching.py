"""Which sequences to run together: by tokens, grouped by length.

Pure functions over lengths; used by the service's batcher and by offline encoding alike,
so that both waste the same padding. Cost of a batch is its rectangle, `n * longest`
tokens, because that is what the engine computes.
"""

from __future__ import annotations

from collections.abc import Sequence


def take_batch(
    lengths: Sequence[int], oldest: int, *, max_tokens: int, max_items: int
) -> list[int]:
    """Choose the sequences to run next with number `oldest`.

    lengths: tokens of each waiting sequence. The rectangle that grows around the oldest
    one takes the neighbours nearest to it in length, and stops at `max_tokens` padded
    tokens or `max_items` sequences. The oldest is always in, however long it is, so
    nothing starves. Returns indices into `lengths`, shortest first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    below = above = order.index(oldest)
    longest = lengths[oldest]
    while above - below + 1 < max_items:
        gap_down = longest - lengths[order[below - 1]] if below > 0 else None
        gap_up = lengths[order[above + 1]] - longest if above + 1 < len(order) else None
        count = above - below + 2
        if gap_up is not None and lengths[order[above + 1]] * count > max_tokens:
            gap_up = None
        if gap_down is not None and longest * count > max_tokens:
            gap_down = None
        if gap_up is None and gap_down is None:
            break
        if gap_down is None or (gap_up is not None and gap_up <= gap_down):
            above += 1
            longest = lengths[order[above]]
        else:
            below -= 1
    return order[below : above + 1]


def split_batches(lengths: Sequence[int], *, max_tokens: int, max_items: int) -> list[list[int]]:
    """Divide all sequences into batches of similar length.

    Returns lists of indices into `lengths`, longest batch first (so that memory peaks at
    once), each within `max_tokens` padded tokens and `max_items` sequences; a sequence
    longer than `max_tokens` has a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if (
            not batches
            or len(batches[-1]) >= max_items
            or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > max_tokens
        ):
            batches.append([])
        batches[-1].append(i)
    return batches

"""Which sequences to run together: by tokens, grouped by length.

Pure functions over lengths; used by the service's batcher and by offline encoding alike,
so that both waste the same padding. Cost of a batch is its rectangle, `n * longest`
tokens, because that is what an engine that pads computes.
"""

from __future__ import annotations

from collections.abc import Sequence

# Padding that a batch may hold: this part of its rectangle, or so few tokens that running their
# owners in a batch of its own would cost more. With 64 clients of mixed lengths on 2 cores, batches
# filled to the brim were 58 % padding and took the server a third more processor time for the same
# sentences/s.
PADDING_SHARE = 0.4
PADDING_TOKENS = 32


def take_batch(
    lengths: Sequence[int], oldest: int, *, max_tokens: int, max_items: int
) -> list[int]:
    """Choose the sequences to run next with number `oldest`.

    lengths: tokens of each waiting sequence. The rectangle that grows around the oldest
    one takes the neighbours nearest to it in length, and stops at `max_tokens` padded
    tokens, `max_items` sequences, or where it would be padding more than anything. The
    oldest is always in, however long it is, so nothing starves. Returns indices into `lengths`,
    shortest first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    below = above = order.index(oldest)
    longest = tokens = lengths[oldest]

    def fits(length: int) -> bool:
        """Whether a sequence of this length may join."""
        rectangle = max(longest, length) * (above - below + 2)
        padding = rectangle - tokens - length
        return rectangle <= max_tokens and padding <= max(PADDING_TOKENS, PADDING_SHARE * rectangle)

    while above - below + 1 < max_items:
        shorter = lengths[order[below - 1]] if below > 0 else None
        longer = lengths[order[above + 1]] if above + 1 < len(order) else None
        if shorter is not None and not fits(shorter):
            shorter = None
        if longer is not None and not fits(longer):
            longer = None
        if shorter is None and longer is None:
            break
        if shorter is None or (longer is not None and longer - longest <= longest - shorter):
            above += 1
            longest = lengths[order[above]]
            tokens += longest
        else:
            below -= 1
            tokens += shorter
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

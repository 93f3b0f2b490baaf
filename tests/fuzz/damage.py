"""What to feed to a parser: what it expects, damaged; and what is like it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# What parsers trip over, more often than chance would bring it.
NASTY = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b'"', b"{", b"}", b"[", b"]", b",", b":",
    b"[" * 2000, b'{"a":' * 2000, b"null", b"true", b"-1", b"0", b"1.0", b"1e999", b"-0.0", b"NaN",
    b"18446744073709551616", b"9" * 5000, b"..", b"/", b"../" * 20, b"\r\n", b"\r\n\r\n", b" " * 100,
]  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-3, 3), st.text(max_size=12),
    st.sampled_from(["", "..", "../x", "/etc/passwd", "a" * 300, "\0", "1", "x.y"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of `samples` with pieces replaced, removed and put in."""
    data = bytearray(draw(st.sampled_from(list(samples))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from([0, 0, 1, 1, 4, 16, 10**6]))
        data[at : at + size] = draw(st.sampled_from(NASTY) | st.binary(max_size=12))
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, samples: Sequence[Any]) -> Any:
    """One of `samples`, JSON, with some value at any depth another one, gone, or under another name."""
    whole = json.loads(json.dumps(draw(st.sampled_from(list(samples)))))
    for _ in range(draw(st.integers(0, 3))):
        place = whole
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.booleans()):
                how = draw(st.sampled_from(["other", "other", "gone", "more"]))
                if how == "gone":
                    del place[key]
                elif how == "more" and isinstance(place, dict):
                    place[draw(st.text(max_size=6))] = draw(VALUES)
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
    return draw(VALUES) if draw(st.integers(0, 19)) == 0 else whole


def json_bytes(samples: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """JSON like `samples`, whole or damaged."""
    texts = [json.dumps(sample, ensure_ascii=False).encode() for sample in samples]
    as_text = changed(samples).map(lambda v: json.dumps(v).encode())
    return as_text | damaged(texts) | st.binary(max_size=40)

"""What the OpenAPI document cannot say, and schemathesis must not take for valid.

A cursor is one that an earlier page gave. A vector has a direction. A text holds a token, which is for the
tokenizer to say. As many translations are sent as texts. A tag's language is one that is registered. A
search asks for no more hits in all than the service is set for. A model that is reloaded is one that is
there.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis


def _mended(value: Any) -> Any:
    """A text, or texts in lists, with a letter in each."""
    if isinstance(value, str):
        return value if any(character.isalnum() for character in value) else f"{value}x"
    return [_mended(one) for one in value] if isinstance(value, list) else value


def _registered(tags: Any) -> Any:
    if isinstance(tags, list):
        return [_registered(tag) for tag in tags]
    subtags = re.split("[_-]", tags)
    if subtags[0] in ("x", "X"):
        return tags
    # After the language three letters are another that belongs to it.
    follows = subtags[1:]
    if follows and len(follows[0]) == 3 and follows[0].isalpha():
        follows[0] = "yue"
    return "-".join(["zh", *follows])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Mend a request that shall be accepted."""
    body = case.body
    if not isinstance(body, dict) or case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.path == "/v1/align":  # as many of either
        source, target = (
            [body[side]] if isinstance(body[side], str) else body[side]
            for side in ("source", "target")
        )
        count = min(len(source), len(target))
        body["source"], body["target"] = source[:count], target[:count]
    for name in ("input", "inputs", "queries", "source", "target"):
        if name in body:
            body[name] = _mended(body[name])
    if body.get("cursor") is not None:
        body["cursor"] = None
    for tag in ("query_language", "languages"):
        if body.get(tag):
            body[tag] = _registered(body[tag])
    if case.path == "/v1/models/reload":
        body.pop("model", None)
    if body.get("per_language"):
        body["k"] = min(body.get("k", 10), 10)
    for vector in body.get("vectors") or ():
        if not any(vector):
            vector[0] = 1.0

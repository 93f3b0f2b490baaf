"""`mexma-index migrate`: move a collection to another encoder while no service has it open.

It does what the service does in the background (docs/migration.md), with all cores and nobody to
give way to. Interrupted, it goes on from there when it is called again, and so does a service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mexma.errors import InputError
from service.canaries import SENTENCES
from service.store.local import LocalStore
from service.store.pair import Embedded

if TYPE_CHECKING:
    from mexma.encoder import Encoder

BATCH_ROWS = 256
K, SAMPLE = 10, 100


def add_to(verbs: Any) -> None:
    """Add the verb to the parser of `mexma-index`."""
    text = "embed a collection by another encoder, beside the vectors there are; or finish that"
    parser = verbs.add_parser("migrate", help=text, description=text)
    parser.add_argument("collection", help="the collection")
    parser.add_argument("model", type=Path, help="the other encoder's artifact")
    parser.add_argument(
        "--cut-over", action="store_true", help="then let the new vectors answer; keep the old"
    )
    parser.add_argument(
        "--retire", action="store_true", help="and drop the old ones: there is no way back then"
    )
    parser.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> None:
    from mexma.encoder import OnnxEncoder, encode  # noqa: PLC0415 - the other verbs need no runtime

    with closing(LocalStore(options.data)) as store:
        store.describe(options.collection)
        encoder = OnnxEncoder(options.model)
        name, fingerprint = options.collection, encoder.fingerprint
        migrations = store.migrations
        if options.retire and name in migrations.names():
            info = migrations.describe(name)
            if info.phase == "cut_over" and info.serving == fingerprint:
                migrations.retire(name)
                print(f"{name}: {info.documents} documents, served by {fingerprint}")
                return
        info = migrations.begin(name, encoder.manifest.dim, fingerprint, encode(encoder, SENTENCES))
        with tqdm(desc=name, total=info.documents, initial=info.embedded, unit=" rows") as bar:
            while rows := migrations.work(name, BATCH_ROWS):
                embedded = _embedded(encoder, [row.text for row in rows])
                migrations.take(name, fingerprint, rows, embedded)
                bar.update(len(rows))
        store.settle()
        info, overlap = migrations.describe(name), migrations.overlap(name, K, SAMPLE)
        print(f"{name}: {info.embedded} of {info.documents} documents embedded by {fingerprint}")
        if overlap is not None:
            print(
                f"overlap@{overlap.k} with {info.serving}: {overlap.overlap:.3f}, recall of the "
                f"new index: {overlap.recall:.3f} ({overlap.queries} documents as queries)"
            )
        if info.failed:
            sys.exit(
                "\n".join(f"mexma-index: {id}: {reason}" for id, reason in info.failed.items())
            )
        if options.cut_over or options.retire:
            migrations.cut_over(name, lambda texts: _embedded(encoder, texts))
            print(f"{name}: cut over; serve {options.model}")
        if options.retire:
            migrations.retire(name)


def _embedded(encoder: Encoder, texts: Sequence[str]) -> Embedded:
    from mexma.encoder import encode  # noqa: PLC0415 - as above

    try:
        return Embedded(encode(encoder, texts), {})
    except InputError:
        vectors = np.zeros((len(texts), encoder.manifest.dim), np.float32)
    failed = {}
    for item, text in enumerate(texts):
        try:
            vectors[item] = encode(encoder, [text])[0]
        except InputError as error:
            failed[item] = str(error)
    return Embedded(vectors, failed)

"""`mexma-index migrate`: move a collection to another encoder while no service has it open.

It does what the service does in the background (docs/migration.md), with all cores and nobody to
give way to. Interrupted, it goes on from there when it is called again, and so does a service. What
is asked for is a state (this encoder answers, nothing is beside it), so what is reached already is
no error, and after a cut-over the old encoder's model leads back.
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
from service.canaries import BOUND, SENTENCES, lowest_cosine
from service.store.local import LocalStore
from service.store.pair import Embedded

if TYPE_CHECKING:
    from mexma.encoder import Encoder

BATCH_ROWS = 256
K, SAMPLE = 10, 100


def add_to(verbs: Any) -> None:
    """Add the verb to the parser of `mexma-index`."""
    text = (
        "embed a collection by another encoder, beside the vectors there are; go on with that, end "
        "it, or go back"
    )
    parser = verbs.add_parser("migrate", help=text, description=text)
    parser.add_argument("collection", help="the collection")
    parser.add_argument("model", type=Path, help="the other encoder's artifact")
    parser.add_argument(
        "--cut-over",
        action="store_true",
        help="then let its vectors answer, also those kept from before; keep the others",
    )
    parser.add_argument(
        "--retire", action="store_true", help="and drop the others: there is no way back then"
    )
    parser.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> None:
    from mexma.encoder import OnnxEncoder  # noqa: PLC0415 - the other verbs need no runtime

    with closing(LocalStore(options.data)) as store:
        store.describe(options.collection)
        encoder = OnnxEncoder(options.model)
        name, migrations = options.collection, store.migrations
        if not _answers(store, name, encoder):
            _embed_all(store, name, encoder)
            if not (options.cut_over or options.retire):
                return
            back = migrations.describe(name).phase == "cut_over"
            change = migrations.roll_back if back else migrations.cut_over
            change(name, lambda texts: _embedded(encoder, texts))
            print(f"{name}: {'rolled back' if back else 'cut over'}; serve {options.model}")
        if options.retire and migrations.beside(name):
            cut_over = migrations.describe(name).phase == "cut_over"
            (migrations.retire if cut_over else migrations.abandon)(name)
            info = store.describe(name)
            print(f"{name}: {info.count} documents, served by {info.fingerprint}")


def _answers(store: LocalStore, name: str, encoder: Encoder) -> bool:
    """Whether this encoder's vectors answer already, and says so then."""
    from mexma.encoder import encode  # noqa: PLC0415 - as above

    fingerprint = encoder.fingerprint
    if store.migrations.beside(name):
        info = store.migrations.describe(name)
        # Embedded anew by its own encoder, both are this one's, and only the phase tells.
        anew = info.serving == info.other and info.phase != "cut_over"
        if info.serving != fingerprint or anew:
            return False
        print(f"{name}: {fingerprint} answers already; vectors of {info.other} are kept beside it")
        return True
    if store.describe(name).fingerprint != fingerprint:
        return False
    kept = store.canaries(name)
    if kept is not None and lowest_cosine(kept, encode(encoder, SENTENCES)) < BOUND:
        return False  # it is off (canaries.py), and embedding it anew is the way out
    print(f"{name}: {fingerprint} answers already, and nothing is beside it")
    return True


def _embed_all(store: LocalStore, name: str, encoder: Encoder) -> None:
    """Begin, or go on in the direction that was begun, until nothing is left to embed."""
    from mexma.encoder import encode  # noqa: PLC0415 - as above

    migrations, fingerprint = store.migrations, encoder.fingerprint
    if migrations.beside(name) and migrations.describe(name).other == fingerprint:
        info = migrations.describe(name)
    else:
        canaries = encode(encoder, SENTENCES)
        info = migrations.begin(name, encoder.manifest.dim, fingerprint, canaries, anew=True)
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
            f"overlap@{overlap.k} with {info.serving}: {overlap.overlap:.3f}, recall of the other "
            f"index: {overlap.recall:.3f} ({overlap.queries} documents as queries)"
        )
    if info.failed:
        sys.exit("\n".join(f"mexma-index: {id}: {reason}" for id, reason in info.failed.items()))


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

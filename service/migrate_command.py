"""`mexma-index migrate`: move a collection to another encoder while no service has it open.

It does what the service does in the background (docs/migration.md), with all cores and nobody to
give way to. Interrupted, it goes on from there when it is called again, and so does a service. What
is asked for is a state (this encoder answers, nothing is beside it), so what is reached already is
no error, and after a cut-over the old encoder's model leads back.

Where collections are, in a folder or on Milvus, it does not know: `Moves` is what both can.
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
from service.canaries import BOUND, DOCUMENTS, SENTENCES, lowest_cosine
from service.places import MovingStore, opened
from service.store.moving import Embedded, Moves
from service.store.protocol import KeepsCanaries, Selection, Store

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

    name = options.collection
    with closing(opened(options.data)) as store:
        moves = store.moves
        if moves.mend(name):
            print(f"{name}: a change-over that was cut off is put right")
        store.describe(name)
        encoder = OnnxEncoder(options.model)
        if not _answers(store, name, encoder):
            _embed_all(moves, name, encoder)
            if not (options.cut_over or options.retire):
                return
            back = moves.describe(name).phase == "cut_over"
            change = moves.roll_back if back else moves.cut_over
            change(name, lambda texts: _embedded(encoder, texts))
            print(f"{name}: {'rolled back' if back else 'cut over'}; serve {options.model}")
        if options.retire and moves.beside(name):
            cut_over = moves.describe(name).phase == "cut_over"
            (moves.retire if cut_over else moves.abandon)(name)
            info = store.describe(name)
            print(f"{name}: {info.count} documents, served by {info.fingerprint}")


def _answers(store: MovingStore, name: str, encoder: Encoder) -> bool:
    """Whether this encoder's vectors answer already, and says so then."""
    fingerprint = encoder.fingerprint
    if store.moves.beside(name):
        info = store.moves.describe(name)
        # Embedded anew by its own encoder, both are this one's, and only the phase tells.
        anew = info.serving == info.other and info.phase != "cut_over"
        if info.serving != fingerprint or anew:
            return False
        print(f"{name}: {fingerprint} answers already; vectors of {info.other} are kept beside it")
        return True
    if store.describe(name).fingerprint != fingerprint or _is_off(store, name, encoder):
        return False
    print(f"{name}: {fingerprint} answers already, and nothing is beside it")
    return True


def _is_off(store: Store, name: str, encoder: Encoder) -> bool:
    """Whether it computes other vectors than the collection's, as canaries.py judges it; then
    embedding the collection anew is the way out."""
    from mexma.encoder import encode  # noqa: PLC0415 - as above

    kept = store.canaries(name) if isinstance(store, KeepsCanaries) else None
    if kept is not None:
        return lowest_cosine(kept, encode(encoder, SENTENCES)) < BOUND
    page = store.scroll(name, Selection(), DOCUMENTS, vectors=True)
    if page.vectors is None or not page.documents:
        return False
    now, failed = _embedded(encoder, [document.text for document in page.documents])
    sound = [item for item in range(len(now)) if item not in failed]
    return lowest_cosine(page.vectors[sound], now[sound]) < BOUND


def _embed_all(moves: Moves[Any], name: str, encoder: Encoder) -> None:
    """Begin, or go on in the direction that was begun, until nothing is left to embed."""
    from mexma.encoder import encode  # noqa: PLC0415 - as above

    fingerprint = encoder.fingerprint
    if moves.beside(name) and moves.describe(name).other == fingerprint:
        info = moves.describe(name)
    else:
        canaries = encode(encoder, SENTENCES)
        info = moves.begin(name, encoder.manifest.dim, fingerprint, canaries, anew=True)
    with tqdm(desc=name, total=info.documents, initial=info.embedded, unit=" rows") as bar:
        while rows := moves.work(name, BATCH_ROWS):
            embedded = _embedded(encoder, [row.text for row in rows])
            moves.take(name, fingerprint, rows, embedded)
            bar.update(len(rows))
    moves.settle()
    info, overlap = moves.describe(name), moves.overlap(name, K, SAMPLE)
    print(f"{name}: {info.embedded} of {info.documents} documents embedded by {fingerprint}")
    if overlap is not None:
        recall = "not measured" if overlap.recall is None else f"{overlap.recall:.3f}"
        print(
            f"overlap@{overlap.k} with {info.serving}: {overlap.overlap:.3f}, recall of the other "
            f"index: {recall} ({overlap.queries} documents as queries)"
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

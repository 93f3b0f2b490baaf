"""The collection `demo`: real sentences in 42 languages, there from the first start."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import NoReturn

from tqdm import tqdm

from mexma.errors import CollectionNotFound, DocumentNotFound, StoreError, StoreUnavailable
from mexma.sample import Sentence, tatoeba_sample
from service.caller import INTERNAL_BULK
from service.state import State
from service.store.protocol import Document, Store

log = logging.getLogger(__name__)

NAME = "demo"
BATCH = 256


async def offer_demo(state: State) -> None:
    """Fill the collection unless it is complete and of an encoder that is served.

    Vectors of any other encoder are replaced, since the sentences are ours to embed again. A
    collection of this name that is not ours, or damaged, is left as it is.
    """
    sentences = tatoeba_sample()
    store, embedder = state.store, state.encoders.default
    fingerprint = embedder.encoder.fingerprint
    try:
        found = await asyncio.to_thread(store.describe, NAME)
    except CollectionNotFound:
        pass
    except StoreUnavailable:
        raise
    except StoreError as error:
        log.error("no demo: %s; delete the collection %s to have it made again", error, NAME)
        return
    else:
        if found.count and not await asyncio.to_thread(_is_ours, store, sentences[0], found.count):
            log.warning("no demo: the collection %s holds other documents", NAME)
            return
        if (owner := state.encoders.get(found.fingerprint)) is not None:
            embedder, fingerprint = owner, found.fingerprint
        if found.fingerprint != fingerprint or state.canaries.is_off(NAME):
            log.info("the demo was embedded by another encoder and is made again")
            await asyncio.to_thread(store.drop, NAME)
            state.canaries.forget(NAME)
        elif found.count == len(sentences):
            return
    await state.canaries.create(NAME, embedder)
    log.info("filling the demo: %d sentences are embedded, once", len(sentences))
    with _progress(state, len(sentences)) as progress:
        for start in range(0, len(sentences), BATCH):
            batch = sentences[start : start + BATCH]
            embedded = await embedder.embed([s.text for s in batch], caller=INTERNAL_BULK)
            documents = [
                Document(id=_id(s), text=s.text, lang=s.lang, metadata={"group": s.group})
                for s in batch
            ]
            await asyncio.to_thread(store.upsert, NAME, documents, embedded.vectors, fingerprint)
            progress.update(len(batch))
    log.info("the demo is there")


def _progress(state: State, total: int) -> tqdm[NoReturn]:
    """A bar where somebody sees it; what reads a log, and JSON above all, wants whole lines."""
    for_people = state.settings.log_format == "text" and sys.stderr.isatty()
    return tqdm(total=total, desc="filling the demo", unit=" sentences", disable=not for_people)


def _id(sentence: Sentence) -> str:
    return f"{sentence.group}-{sentence.lang}"


def _is_ours(store: Store, first: Sentence, count: int) -> bool:
    """Whether a collection is a demo of ours, complete or not: our first document, and no more
    documents than we would write."""
    try:
        text = store.get(NAME, _id(first)).text
    except DocumentNotFound:
        return False
    return text == first.text and count <= len(tatoeba_sample())

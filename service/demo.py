"""The collection `demo`: real sentences in 42 languages, there from the first start."""

from __future__ import annotations

import asyncio
import logging

from tqdm import tqdm

from mexma.errors import CollectionNotFound
from mexma.sample import tatoeba_sample
from service.state import State
from service.store.protocol import Document

log = logging.getLogger(__name__)

NAME = "demo"
BATCH = 256


async def offer_demo(state: State) -> None:
    """Fill the collection unless it is complete and of this encoder.

    Vectors of another encoder are replaced, since the sentences are ours to embed again.
    """
    sentences = tatoeba_sample()
    dim, fingerprint = state.encoder.manifest.dim, state.encoder.fingerprint
    store = state.store
    try:
        found = await asyncio.to_thread(store.describe, NAME)
        if found.fingerprint == fingerprint and found.count >= len(sentences):
            return
        if found.fingerprint != fingerprint:
            log.info("the demo was embedded by another encoder and is made again")
            await asyncio.to_thread(store.drop, NAME)
    except CollectionNotFound:
        pass
    await asyncio.to_thread(store.create, NAME, dim, fingerprint)
    with tqdm(total=len(sentences), desc="filling the demo", unit=" sentences") as progress:
        for start in range(0, len(sentences), BATCH):
            batch = sentences[start : start + BATCH]
            embedded = await state.embedder.embed([s.text for s in batch])
            documents = [
                Document(
                    id=f"{s.group}-{s.lang}", text=s.text, lang=s.lang, metadata={"group": s.group}
                )
                for s in batch
            ]
            await asyncio.to_thread(store.upsert, NAME, documents, embedded.vectors, fingerprint)
            progress.update(len(batch))

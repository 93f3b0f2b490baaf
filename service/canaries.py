"""Whether an encoder still computes what it computed when a collection was made.

A fingerprint names the files that an encoder was loaded from. Another version of the runtime,
another processor or a damaged memory may make other vectors from the same files, and searches would
go silently wrong. So a collection keeps its encoder's vectors of a few fixed sentences, and they are
embedded again at each start, after a restore and before a cut-over. A collection that has none (made
before there were any, or kept by another kind of store) is judged by some of its own documents.

Refuses to know: HTTP, engines, how stores keep what they are given.
"""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from mexma.errors import CanaryMismatch, StoreError
from service.caller import INTERNAL_AT_ONCE
from service.engine.embedder import Embedder
from service.engine.encoders import Encoders
from service.store.protocol import CollectionInfo, KeepsCanaries, Selection, Store, Vectors

log = logging.getLogger(__name__)

SENTENCES = (
    "I have two cats.",
    "Der Zug nach Lyon fährt um neun Uhr ab, aber er hat heute wieder Verspätung.",
    "昨日は雨が降っていたので、家で本を読んでいました。",
    "Где находится ближайшая аптека?",
    "أين يمكنني شراء تذكرة؟",
    "मुझे चाय पसंद है।",
    "Minulla on 3,50 euroa – riittääkö se?",
    "No",
)
"""Never to be changed: collections hold vectors of just these. Scripts, lengths, digits, signs."""

BOUND = 0.9999
"""Least cosine: what batching is held to, so what may differ without anything being wrong."""
DOCUMENTS = 8


class Canaries:
    """What is known of the collections of `store`: which of them are off, and why."""

    def __init__(self, encoders: Encoders, store: Store):
        self._encoders = encoders
        self._store = store
        self._off: dict[str, str] = {}
        self._checked: set[str] = set()
        self._vectors: dict[str, Vectors] = {}

    async def vectors(self, embedder: Embedder) -> Vectors:
        """The sentences' vectors in this process, float32 `[n, dim]`."""
        fingerprint, most = embedder.encoder.fingerprint, embedder.settings.max_request_items
        if fingerprint not in self._vectors:
            parts = [SENTENCES[i : i + most] for i in range(0, len(SENTENCES), most)]
            embedded = [
                await embedder.embed(p, truncate=True, caller=INTERNAL_AT_ONCE) for p in parts
            ]
            self._vectors[fingerprint] = np.vstack([one.vectors for one in embedded])
        return self._vectors[fingerprint]

    async def create(self, name: str, embedder: Embedder) -> CollectionInfo:
        """Make a collection of this encoder, or find it; see Store.create."""
        dim, fingerprint = embedder.encoder.manifest.dim, embedder.encoder.fingerprint
        if isinstance(self._store, KeepsCanaries):
            with embedder.holders:
                now = await self.vectors(embedder)
            return await asyncio.to_thread(self._store.create, name, dim, fingerprint, now)
        return await asyncio.to_thread(self._store.create, name, dim, fingerprint)

    async def check_all(self) -> None:
        """Of a store that does not answer each collection is checked at its first use."""
        try:
            infos = await asyncio.to_thread(self._store.list)
        except StoreError as error:
            log.warning("canaries are checked later: %s", error)
            return
        for info in infos:
            await self.check(info.name)

    async def check(self, name: str) -> None:
        """Compare a collection with its encoder now, and turn it off or on again."""
        try:
            reason = await self._why_off(name)
        except StoreError:
            return  # damaged, gone, or not reached: said by whoever uses it
        self._checked.add(name)
        if reason is None:
            self._off.pop(name, None)
        else:
            self._off[name] = reason
            log.error(reason)

    async def _why_off(self, name: str) -> str | None:
        info = await asyncio.to_thread(self._store.describe, name)
        worst, embedder = 1.0, self._encoders.get(info.fingerprint)
        if embedder is not None:
            with embedder.holders:
                worst = await self._worst(name, embedder)
        if worst >= BOUND:
            return None
        return (
            f"collection {name!r} is off: its encoder {info.fingerprint} now computes vectors of "
            f"cosine {worst:.4f} to those it was made with, at least {BOUND} is expected. The runtime "
            "or the machine has changed; go back to what it was, or migrate the collection to the "
            "same model, which embeds it anew"
        )

    async def _worst(self, name: str, embedder: Embedder) -> float:
        """Lowest cosine of what is stored to what is computed now; 1 where nothing is stored."""
        kept = None
        if isinstance(self._store, KeepsCanaries):
            kept = await asyncio.to_thread(self._store.canaries, name)
        if kept is not None:
            return lowest_cosine(kept, await self.vectors(embedder))
        page = await asyncio.to_thread(
            self._store.scroll, name, Selection(), DOCUMENTS, None, vectors=True
        )
        if not page.documents or page.vectors is None:
            return 1.0
        worst = 1.0
        for document, vector in zip(page.documents, page.vectors, strict=True):
            now = await embedder.embed([document.text], truncate=True, caller=INTERNAL_AT_ONCE)
            worst = min(worst, lowest_cosine(vector[None], now.vectors))
        return worst

    def encoders_changed(self) -> None:
        """Another encoder may be served than before: each collection is looked at when it is next
        used, and of an encoder that has gone nothing is remembered."""
        self._checked.clear()
        self._vectors = {f: v for f, v in self._vectors.items() if self._encoders.get(f)}

    def off(self) -> dict[str, str]:
        """Collection -> why it is off."""
        return dict(self._off)

    def is_off(self, name: str) -> bool:
        return name in self._off

    async def see_to_on(self, name: str) -> None:
        """Before vectors of a collection are used. Raises CanaryMismatch where it is off."""
        if name not in self._checked:
            await self.check(name)
        if reason := self._off.get(name):
            raise CanaryMismatch(reason)

    def forget(self, name: str) -> None:
        """The collection is gone."""
        self._off.pop(name, None)
        self._checked.discard(name)


def lowest_cosine(kept: Vectors, now: Vectors) -> float:
    """Of rows float32 `[n, dim]` of any length, pair by pair; -1 where the shapes differ."""
    if kept.shape != now.shape:
        return -1.0
    a, b = kept.astype(np.float64), now.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("nd,nd->n", a, b) / np.where(lengths > 0, lengths, 1)
    return float(np.nan_to_num(cosines, nan=-1.0).min(initial=1.0))

"""The encoders that are served side by side, and which of them a request or a collection means.

A collection is answered by the encoder whose fingerprint it carries. A request for vectors names a
model, and a name that is none of ours means the default: OpenAI's clients send names of their own.
After a reload the default is another one, from one request to the next; the one before is kept for a
while, for collections and for the way back, and is meant by its fingerprint only.

Refuses to know: HTTP, how a collection comes from one encoder to another (migrator.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Literal

from mexma.encoder import Encoder
from mexma.errors import ArtifactError, ModelNotFound, Overloaded
from service.caller import Caller
from service.engine.embedder import Embedder
from service.engine.tuning import Tuning
from service.metrics import Metrics
from service.settings import Settings
from service.store.admission import check_fingerprint
from service.store.protocol import CollectionInfo

log = logging.getLogger(__name__)

Role = Literal["default", "further", "kept"]


class Encoders:
    """The default, and further ones, each behind an embedder of its own.

    Raises ArtifactError where two have one fingerprint: they are the same encoder twice.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        settings: Settings,
        metrics: Metrics,
        *,
        tuning: Tuning | None = None,
    ):
        """tuning: what is asked where the settings leave open how large a batch is."""
        self._settings, self._metrics, self._tuning = settings, metrics, tuning
        self._embedders: dict[str, Embedder] = {}
        for encoder in encoders:
            name, fingerprint = encoder.manifest.name, encoder.fingerprint
            if fingerprint in self._embedders:
                raise ArtifactError(
                    f"each model may be served once, {name!r} with fingerprint {fingerprint} "
                    "is there twice: MEXMA_FURTHER_MODELS lists models beside MEXMA_MODEL"
                )
            if any(e.encoder.manifest.name == name for e in self._embedders.values()):
                log.warning(
                    "two models are called %r: by this name the first of them is asked, the one with "
                    "fingerprint %s by that only (mexma-export --name)", name, fingerprint,
                )  # fmt: skip
            self._embedders[fingerprint] = Embedder(encoder, settings, metrics)
            metrics.encoder.labels(name, fingerprint).set(1)
        self.default = next(iter(self._embedders.values()))
        self._further = {encoder.fingerprint for encoder in encoders[1:]}

    def __iter__(self) -> Iterator[Embedder]:
        """The default first, those that are kept last; as of now, whatever happens meanwhile."""
        others = [e for e in self._embedders.values() if e is not self.default]
        return iter([self.default, *sorted(others, key=lambda e: self.role(e) == "kept")])

    def __len__(self) -> int:
        return len(self._embedders)

    def get(self, fingerprint: str) -> Embedder | None:
        return self._embedders.get(fingerprint)

    def named(self, model: str | None) -> Embedder | None:
        """The one of this fingerprint or, the default first, of this name."""
        if model is None:
            return None
        by_name = (e for e in self if e.encoder.manifest.name == model and self.role(e) != "kept")
        return self._embedders.get(model) or next(by_name, None)

    def for_request(self, model: str | None) -> Embedder:
        """Whose vectors a request gets that names `model`."""
        return self.named(model) or self.default

    def refusal(self, body_bytes: int, caller: Caller, coming: int) -> Overloaded | None:
        """As `Embedder.refusal`; where there are several, the body says which one is meant."""
        return self.default.refusal(body_bytes, caller, coming) if len(self) == 1 else None

    def known(self, model: str) -> Embedder:
        """The one that is meant by a name or fingerprint. Raises ModelNotFound that lists them."""
        if found := self.named(model):
            return found
        served = ", ".join(
            f"{e.encoder.manifest.name} ({e.encoder.fingerprint})"
            if self.role(e) != "kept"
            else f"{e.encoder.fingerprint} (kept of {e.encoder.manifest.name}: by fingerprint only)"
            for e in self
        )
        raise ModelNotFound(
            f"model must be one that is served, which are {served}; got {model[:80]!r}"
        )

    def of(self, info: CollectionInfo, *, otherwise: str = "") -> Embedder:
        """The one that a collection belongs to. Raises FingerprintMismatch where it is not served.

        otherwise: what can be done then, beside what that says by itself.
        """
        found = self._embedders.get(info.fingerprint)
        if found is None:
            ours = self.default.encoder.fingerprint
            check_fingerprint(info.name, info.fingerprint, ours, otherwise=otherwise)
            raise AssertionError("the default is among the embedders")
        return found

    def role(self, embedder: Embedder) -> Role:
        """Of one that is here. kept: it was the default before a reload."""
        if embedder is self.default:
            return "default"
        return "further" if embedder.encoder.fingerprint in self._further else "kept"

    def embedder(self, encoder: Encoder) -> Embedder:
        """One that is to be proved, and takes batches; nobody is answered by it."""
        made = Embedder(encoder, self._settings, self._metrics)
        made.language_meter = self.default.language_meter
        made.batcher.start()
        return made

    async def tune(self, embedder: Embedder) -> None:
        """Let batches of bulk work be as large as is best for this one, and say how fast they are. Takes
        a second where that has to be measured first."""
        settings, usual = self._settings, self._settings.max_batch_tokens
        tokens = settings.bulk_batch_tokens
        if not tokens and self._tuning is not None:
            tokens, tokens_per_s = await asyncio.to_thread(
                self._tuning.bulk_batches,
                embedder.encoder,
                usual,
                where=f"{settings.device}, {settings.threads} threads",
                cold=settings.device == "cuda",
            )
            embedder.batcher.expect(tokens_per_s)
        embedder.batcher.allow_bulk_batches(max(tokens, usual))

    def make_default(self, embedder: Embedder) -> None:
        """From the next request on it is `embedder` that answers; who has begun ends as begun."""
        before, self.default = self.default, embedder
        self._embedders[embedder.encoder.fingerprint] = embedder
        for one in (before, embedder):
            labels = (one.encoder.manifest.name, one.encoder.fingerprint)
            if self.role(one) == "kept":
                self._metrics.encoder.remove(*labels)
            else:
                self._metrics.encoder.labels(*labels).set(1)

    def remove(self, embedder: Embedder) -> None:
        """No request is answered by this one, which is kept, any more."""
        if self.role(embedder) != "kept":
            raise ValueError("only one that is kept is given up")
        self._embedders.pop(embedder.encoder.fingerprint, None)

    def start(self) -> None:
        """Begin taking batches, on the running event loop."""
        for embedder in self:
            embedder.batcher.start()

    async def stop(self) -> None:
        for embedder in self:
            await embedder.stop()

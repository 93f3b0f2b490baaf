"""The encoders that are served side by side, and which of them a request or a collection means.

A collection is answered by the encoder whose fingerprint it carries. A request for vectors names a
model, and a name that is none of ours means the default: OpenAI's clients send names of their own.

Refuses to know: HTTP, how a collection comes from one encoder to another (migrator.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mexma.encoder import Encoder
from mexma.errors import ArtifactError, ModelNotFound
from service.engine.embedder import Embedder
from service.metrics import Metrics
from service.settings import Settings
from service.store.admission import check_fingerprint
from service.store.protocol import CollectionInfo


class Encoders:
    """The default, and further ones, each behind an embedder of its own.

    Raises ArtifactError where two have one fingerprint: they are the same encoder twice.
    """

    def __init__(self, encoders: Sequence[Encoder], settings: Settings, metrics: Metrics):
        self._embedders: dict[str, Embedder] = {}
        for encoder in encoders:
            name, fingerprint = encoder.manifest.name, encoder.fingerprint
            if fingerprint in self._embedders:
                raise ArtifactError(
                    f"each model may be served once, {name!r} with fingerprint {fingerprint} "
                    "is there twice: MEXMA_FURTHER_MODELS lists models beside MEXMA_MODEL"
                )
            self._embedders[fingerprint] = Embedder(encoder, settings, metrics)
            metrics.encoder.labels(name, fingerprint).set(1)
        self.default = next(iter(self._embedders.values()))

    def __iter__(self) -> Iterator[Embedder]:
        """The default first."""
        return iter(self._embedders.values())

    def __len__(self) -> int:
        return len(self._embedders)

    def get(self, fingerprint: str) -> Embedder | None:
        return self._embedders.get(fingerprint)

    def named(self, model: str | None) -> Embedder | None:
        """The one of this fingerprint or, the default first, of this name."""
        if model is None:
            return None
        by_name = (e for e in self if e.encoder.manifest.name == model)
        return self._embedders.get(model) or next(by_name, None)

    def for_request(self, model: str | None) -> Embedder:
        """Whose vectors a request gets that names `model`."""
        return self.named(model) or self.default

    def known(self, model: str) -> Embedder:
        """The one that is meant by a name or fingerprint. Raises ModelNotFound that lists them."""
        if found := self.named(model):
            return found
        served = ", ".join(f"{e.encoder.manifest.name} ({e.encoder.fingerprint})" for e in self)
        raise ModelNotFound(
            f"model must be one that is served, which are {served}; got {model[:80]!r}"
        )

    def of(self, info: CollectionInfo) -> Embedder:
        """The one that a collection belongs to. Raises FingerprintMismatch where it is not served."""
        found = self._embedders.get(info.fingerprint)
        if found is None:
            check_fingerprint(info.name, info.fingerprint, self.default.encoder.fingerprint)
            raise AssertionError("the default is among the embedders")
        return found

    def start(self) -> None:
        """Begin taking batches, on the running event loop."""
        for embedder in self:
            embedder.batcher.start()

    async def stop(self) -> None:
        for embedder in self:
            await embedder.stop()

"""Moving a collection to another encoder, whoever keeps it: what is asked, and what is told.

    Moves            the contract of `mexma-index migrate`; the embedded store and Milvus keep it
    MigrationInfo    how far a migration is
    Embedded         what an encoder made of some texts
    Overlap          how differently the two encoders answer

Refuses to know: encoders (texts go out, vectors come in), how anything is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

from service.store.protocol import Vectors

Phase = Literal["embedding", "ready", "cut_over"]


class Embedded(NamedTuple):
    """vectors: float32 `[n, dim]`, any for those that failed. failed: item -> the reason."""

    vectors: Vectors
    failed: dict[int, str]


Embed = Callable[[Sequence[str]], Embedded]


@dataclass(frozen=True)
class MigrationInfo:
    """serving, other: fingerprints. phase: "embedding" while rows are left to do, "ready" when none are,
    or no more than a cut-over embeds while writers wait, "cut_over" when the new encoder serves.
    documents: in the collection; embedded: of these, by `other` too. failed: id -> why `other` cannot
    embed it. index_state: of `other`."""

    collection: str
    phase: Phase
    serving: str
    other: str
    documents: int
    embedded: int
    failed: dict[str, str]
    index_state: Literal["exact", "building", "approximate", "corrupt"]


@dataclass(frozen=True)
class Overlap:
    """overlap: share of a document's k nearest others that is the same in both, mean over the
    queries. recall: share of the exact k nearest that searches of `other` find, 1 where they
    compare all, None where that cannot be measured. queries: documents of which it was measured,
    among `documents` with both vectors."""

    k: int
    queries: int
    documents: int
    overlap: float
    recall: float | None


class WithText(Protocol):
    """A row of a store; only its text goes out."""

    @property
    def text(self) -> str: ...


R = TypeVar("R", bound=WithText)


class Moves(Protocol[R]):
    """One thread in one process moves collections. Every method may be cut off at any point, and
    what was asked for is asked for again."""

    def mend(self, name: str) -> bool:
        """Give the name its collection back where a change-over was cut off. Whether one was."""
        ...

    def beside(self, name: str) -> Sequence[object]:
        """What is kept beside the collection of this name: nothing, or vectors of one encoder."""
        ...

    def describe(self, name: str) -> MigrationInfo:
        """Raises MigrationNotFound where nothing is beside."""
        ...

    def begin(
        self,
        name: str,
        dim: int,
        fingerprint: str,
        canaries: Vectors | None = None,
        *,
        anew: bool = False,
    ) -> MigrationInfo:
        """Begin, or go on where that was done. canaries: the encoder's vectors of fixed sentences,
        for stores that keep them. anew: also where the collection is this encoder's already.

        Raises MigrationConflict where another encoder's vectors are beside.
        """
        ...

    def work(self, name: str, limit: int) -> list[R]:
        """The next rows to embed by the encoder that does not serve; none where none are left."""
        ...

    def take(self, name: str, other: str, rows: list[R], embedded: Embedded) -> None:
        """Keep what was made of them by the encoder `other`; durable on return."""
        ...

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until what was taken is indexed. Whether it is."""
        ...

    def overlap(self, name: str, k: int, sample: int) -> Overlap | None:
        """How the two answer, from up to `sample` documents; None of fewer than three."""
        ...

    def cut_over(self, name: str, embed: Embed, /) -> MigrationInfo:
        """Let the new encoder's vectors answer, and keep the old ones. embed: by the new encoder.

        Raises MigrationConflict where documents are left that it would lose.
        """
        ...

    def roll_back(self, name: str, embed: Embed, /) -> MigrationInfo:
        """Let the old encoder's vectors answer again, likewise. embed: by the old encoder."""
        ...

    def abandon(self, name: str) -> None:
        """Drop the new encoder's vectors; raises MigrationConflict where they answer."""
        ...

    def retire(self, name: str) -> None:
        """Drop the old encoder's vectors; raises MigrationConflict where they answer."""
        ...

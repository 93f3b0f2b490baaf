"""Every error this project raises on purpose, drawn once.

    MexmaError
    ├── InputError                  what the caller sent cannot be used; names the item
    │   ├── EmptyText               no text, or a text without a single token
    │   ├── TextTooLong             longer than the limit, and truncation was refused
    │   ├── UnencodableText         not valid Unicode (a lone surrogate)
    │   ├── TokenOutOfRange         a token id this tokenizer does not have
    │   ├── TooManyItems            more items in one request than the limit
    │   └── TooManyTokens           more tokens in one request than the limit
    ├── ModelNotFound               no model of that name is served
    ├── NoTokenStates               the model gives vectors of whole texts only
    ├── InstallationError           the packages installed here cannot do the job
    │   ├── ConflictingPackages     CPU and GPU twins of one package, installed over each other
    │   └── DeviceUnavailable       the device asked for is not there; we never fall back silently
    ├── ArtifactError               a model directory was refused
    │   └── ParityError             an export whose vectors differ too much from the original's
    ├── ReloadError                 no other model was taken into service; the one there was serves on
    │   ├── ReloadRefused           it is damaged, does not fit, or was not proved
    │   ├── ReloadConflict          another reload is on its way, or there is nothing to go back to
    │   └── ReloadUnsupported       this service cannot
    ├── CheckpointError             a checkpoint directory was refused
    ├── EngineError                 inference failed
    │   └── NonFiniteVector         inference gave NaN or infinity for this item
    ├── Overloaded                  the queue is full; says when to come back
    │   └── EngineAway              the engine's process is being restarted
    ├── QuotaExceeded               the client has used its tokens; says when to come back
    ├── KeyFileError                the file of API keys was refused
    ├── AuditError                  an administrator's act cannot be recorded, so it is not done
    ├── DeadlineExceeded            the work was not finished in the time given
    └── StoreError                  the vector store refused
        ├── CollectionNotFound
        ├── CollectionExists
        ├── DocumentNotFound
        ├── BackupNotFound
        ├── FingerprintMismatch     vectors of another encoder
        ├── CanaryMismatch          its encoder computes other vectors than when it was made
        ├── MigrationNotFound       the collection is not being moved to another encoder
        ├── MigrationConflict       what was asked of a migration is not possible in its phase
        ├── StoreUnavailable        its server does not answer; says when to come back
        │   └── CollectionAway      another encoder's vectors are being put in its place
        ├── StoreUnsupported        this kind of store cannot do that
        ├── StoreFailed             the disk is full, or does not read or write; nothing was changed
        └── StoreCorrupt            stored data does not verify

Each says what was expected, what came, and where. The service maps them to status codes
in one table (`service/http_errors.py`); nothing else knows about HTTP.
"""

from __future__ import annotations


class MexmaError(Exception):
    """Base of the tree. `str(error)` is one sentence for whoever runs this; `public` is one for
    whoever calls it from elsewhere, the same unless it could hold what is the operator's: paths,
    addresses, what a library said.
    """

    @property
    def public(self) -> str:
        return str(self)


class InputError(MexmaError):
    """The input cannot be used.

    item: zero-based index of the offending item in the request's list, None when the
    request as a whole is meant. limit: the number that was exceeded, if there is one.
    """

    def __init__(self, message: str, *, item: int | None = None, limit: int | None = None):
        super().__init__(message)
        self.item = item
        self.limit = limit


class EmptyText(InputError):
    """An item holds nothing to embed."""


class TextTooLong(InputError):
    """An item is longer than `limit`, and the caller refused truncation."""


class UnencodableText(InputError):
    """An item is not valid Unicode and cannot be encoded as UTF-8."""


class InvalidLanguageTag(InputError):
    """What should name a language is no BCP 47 tag."""


class TokenOutOfRange(InputError):
    """An item given as token ids holds an id outside the vocabulary."""


class TooManyItems(InputError):
    """The request holds more items than `limit`."""


class TooManyTokens(InputError):
    """The request holds more tokens than `limit`, of which each has an answer of its own."""


class ModelNotFound(MexmaError):
    """No model of that name or fingerprint is served."""


class NoTokenStates(MexmaError):
    """The model was exported without the states of its tokens."""


class InstallationError(MexmaError):
    """The installed packages cannot do what was asked."""


class ConflictingPackages(InstallationError):
    """Two distributions that overwrite each other's files are both installed."""


class DeviceUnavailable(InstallationError):
    """The requested device cannot run the model here."""


class ArtifactError(MexmaError):
    """A directory is not an artifact this version can serve."""


class ParityError(ArtifactError):
    """An exported model's vectors miss the bound against the original's."""


class ReloadError(MexmaError):
    """The model that serves was not exchanged; nothing has changed."""


class ReloadRefused(ReloadError):
    """The new model cannot be loaded, or did not show what it must; says which file or what."""


class ReloadConflict(ReloadError):
    """Not now: another reload is on its way, or there is no model to go back to."""


class ReloadUnsupported(ReloadError):
    """Not here, now or later; the message says why and what can be done instead."""


class CheckpointError(MexmaError):
    """A directory is not a checkpoint this version can read."""


class EngineError(MexmaError):
    """Inference failed. item: index within the request, where one item is to blame."""

    def __init__(self, message: str, *, item: int | None = None):
        super().__init__(message)
        self.item = item


class NonFiniteVector(EngineError):
    """Inference returned NaN or infinity; such vectors never leave the service."""


class Overloaded(MexmaError):
    """The queue holds more than it may. retry_after_s: a time after which room is likely."""

    def __init__(self, message: str, *, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineAway(Overloaded):
    """The process that has the engine died, or has not come up again yet."""


class QuotaExceeded(MexmaError):
    """The client has spent its tokens. retry_after_s: a time after which they are granted.
    limit: tokens a minute."""

    def __init__(self, message: str, *, retry_after_s: float, limit: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit


class KeyFileError(MexmaError):
    """The file of API keys cannot be used."""


class AuditError(MexmaError):
    """The record of administrators' acts cannot be written."""


class DeadlineExceeded(MexmaError):
    """The work was not finished within its deadline."""


class StoreError(MexmaError):
    """The vector store refused an operation."""


class CollectionNotFound(StoreError):
    """No collection of that name."""


class CollectionExists(StoreError):
    """A collection of that name exists already and differs from what was asked."""


class DocumentNotFound(StoreError):
    """No document of that id in the collection."""


class BackupNotFound(StoreError):
    """No snapshot of that id of the collection."""


class FingerprintMismatch(StoreError):
    """The collection's vectors come from another encoder than the one at hand."""

    def __init__(self, message: str, *, expected: str, found: str):
        super().__init__(message)
        self.expected = expected
        self.found = found


class CanaryMismatch(StoreError):
    """The collection's encoder, as it runs here and now, makes other vectors than those stored."""


class MigrationNotFound(StoreError):
    """The collection has vectors of one encoder only."""


class MigrationConflict(StoreError):
    """A migration cannot do this now; says what it waits for, or what it is doing already."""


class StoreUnavailable(StoreError):
    """The store's server does not answer. What was being written may or may not have been; it can
    be sent again as it was. retry_after_s: a time after which it may answer.
    """

    def __init__(self, message: str, *, retry_after_s: float = 5.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def public(self) -> str:
        return "the store's server does not answer; retry"


class CollectionAway(StoreUnavailable):
    """The collection has no place for a moment, while it is changed over to another encoder."""

    @property
    def public(self) -> str:
        return str(self)


class StoreUnsupported(StoreError):
    """This kind of store cannot do that, now or later; the message says what can."""


class StoreFailed(StoreError):
    """The store could not read or write; a write that raises this has changed nothing."""

    @property
    def public(self) -> str:
        return (
            "the store could not read or write, and nothing was changed; the service's log says why"
        )


class StoreCorrupt(StoreError):
    """Stored data is damaged; nothing is served from it."""

    @property
    def public(self) -> str:
        return (
            "what is stored is damaged and not served; the service's log says what was found, and "
            "restoring a snapshot that is whole puts it in a damaged collection's place "
            "(POST /v1/collections/NAME/snapshots/ID/restore)"
        )

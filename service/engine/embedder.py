"""Text in, vectors out, for one request: tokenise off the loop, batch, report.

The border between HTTP and the engine: routes call this and nothing below it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mexma.encoder import Encoder
from mexma.errors import (
    DeadlineExceeded,
    EngineError,
    InputError,
    NoTokenStates,
    Overloaded,
    TooManyItems,
    TooManyTokens,
)
from mexma.text import Piece, Side, Tokens
from service import tracing
from service.caller import INTERNAL, Caller, is_ours
from service.engine import claims
from service.engine.batcher import Batcher, Job
from service.engine.cache import VectorCache
from service.engine.holders import Holders
from service.engine.invariance import InvarianceCheck
from service.engine.lanes import SERVICE, Lane
from service.engine.state_room import StateRoom
from service.language_meter import LanguageMeter
from service.metrics import Metrics
from service.security import quotas
from service.settings import Settings

T = TypeVar("T")
Submit = Callable[..., Awaitable[Job]]

# Tokenising this many characters takes about 50 microseconds, less than a hop to a thread.
INLINE_CHARACTERS = 200

# Items that a thread tokenises within some hundred microseconds, and that many threads help with at most.
ITEMS_APART = 32
MOST_THREADS = 8

# Of a GPU's batch, what may always run beside a light interactive client: 2,048 tokens, a millisecond or two.
GPU_QUANTA = 8

# A request's tokens are hardly fewer than its bytes over this: scripts of three bytes a character
# have three or four of them to a token, and JSON its share.
BYTES_PER_TOKEN = 10


@dataclass
class Receipt:
    """What one request took. tokens: per item, None where tokenising failed. Times in seconds."""

    tokens: list[Tokens | None]
    errors: dict[int, InputError | EngineError]
    tokenize_s: float
    queue_s: float
    inference_s: float

    @property
    def token_count(self) -> int:
        return sum(len(t) for t in self.tokens if t is not None)


@dataclass
class Embedded(Receipt):
    """The outcome of one request.

    vectors: float32 `[n, dim]`; rows of failed items are zero and their errors are in
    `errors`.
    """

    vectors: NDArray[np.float32]


@dataclass
class TokenStates(Receipt):
    """The outcome of one request for the states of tokens: states float32 `[length, hidden]` of each item,
    special tokens included, not to be written to."""

    states: list[NDArray[np.float32]]


class Embedder:
    """An encoder behind its batcher, with the request limits."""

    def __init__(
        self,
        encoder: Encoder,
        settings: Settings,
        metrics: Metrics,
        *,
        submit: Submit | None = None,
    ):
        """submit: takes the batcher's place where the engine is in another process."""
        self.encoder = encoder
        self.holders = Holders()  # who may still submit something, or waits for it
        self._submit = submit
        self.settings = settings
        self.metrics = metrics
        check = InvarianceCheck(
            encoder.run,
            every=settings.invariance_check_every,
            report=partial(metrics.invariance_found, encoder.fingerprint),
        )
        on_gpu = settings.device == "cuda"
        self.batcher = Batcher(
            check.run,
            states=encoder.token_states,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_items=settings.max_batch_items,
            max_queue_tokens=settings.max_queue_tokens,
            max_wait_s=settings.interactive_wait_s,
            pads=encoder.pads,
            streams=encoder.streams,
            bulk_beside=on_gpu,
            # There a batch of so many takes little longer than one text, which a service that has run
            # nothing but small ones cannot know.
            least_quantum=settings.max_batch_tokens // GPU_QUANTA if on_gpu else 0,
            observer=metrics,
            cache=VectorCache(settings.cache_mb << 20, fingerprint=encoder.fingerprint),
        )
        metrics.watch(self.batcher)
        self.state_room = StateRoom(
            settings.max_state_tokens, tokens_per_s=lambda: self.batcher.cost.tokens_per_s
        )
        self.language_meter: LanguageMeter | None = None
        self.tokenizer_threads = _tokenizer_threads(settings)
        self._tokenizes_apart = on_gpu
        self._tokenizers = ThreadPoolExecutor(self.tokenizer_threads, thread_name_prefix="tokenize")

    async def stop(self) -> None:
        await self.batcher.stop()
        self.metrics.unwatch(self.batcher)
        self.metrics.forget_invariance(self.encoder.fingerprint)
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        truncate: bool | None = None,
        side: Side = "right",
        partial: bool = False,
        caller: Caller = INTERNAL,
    ) -> Embedded:
        """Embed `texts`.

        truncate: None means the service's default. partial: keep going when items are bad and
        report them in `errors`; otherwise the first one is raised. caller: who asks, which
        decides when it is their turn. Raises InputError, EngineError, Overloaded or
        DeadlineExceeded.
        """
        wanted = self.settings.auto_truncate if truncate is None else truncate
        tokenizer = self.encoder.tokenizer
        with self.holders:
            embedded = await self._embed(
                texts,
                lambda batch: tokenizer.encode(batch, truncate=wanted, side=side),
                inline=sum(map(len, texts)) <= INLINE_CHARACTERS,
                partial=partial,
                caller=caller,
            )
        if self.language_meter is not None and not is_ours(caller):
            self.language_meter.observe(texts, embedded.tokens)
        return embedded

    async def embed_ids(
        self,
        items: Sequence[Sequence[int]],
        *,
        truncate: bool | None = None,
        partial: bool = False,
        caller: Caller = INTERNAL,
    ) -> Embedded:
        """Embed sequences of this encoder's token ids; otherwise as `embed`."""
        wanted = self.settings.auto_truncate if truncate is None else truncate
        tokenizer = self.encoder.tokenizer
        with self.holders:
            return await self._embed(
                items,
                lambda batch: tokenizer.from_ids(batch, truncate=wanted),
                inline=False,
                partial=partial,
                caller=caller,
            )

    @asynccontextmanager
    async def token_states(
        self,
        items: Sequence[str] | Sequence[Sequence[int]],
        *,
        truncate: bool | None = None,
        side: Side = "right",
        locate: bool = False,
        caller: Caller = INTERNAL,
    ) -> AsyncIterator[TokenStates]:
        """The states of the tokens of texts or token ids, `async with`: room for them is held until its end.

        locate: where the tokens of texts lie, too: they are `LocatedTokens` then. The rest as `embed`, in the
        same queue. Raises what that does, NoTokenStates where the model gives none, and TooManyTokens.
        """
        manifest = self.encoder.manifest
        if manifest.token_output_name is None:
            raise NoTokenStates(
                f"{manifest.name} was exported without token states; mexma-export writes them with "
                "--token-states"
            )
        wanted = self.settings.auto_truncate if truncate is None else truncate
        tokenizer = self.encoder.tokenizer
        limit = self.settings.max_state_tokens
        texts = [item for item in items if isinstance(item, str)]

        def tokenize(batch: Sequence[Any]) -> list[Tokens]:
            if not texts:
                return tokenizer.from_ids(batch, truncate=wanted)
            work = tokenizer.locate if locate else tokenizer.encode
            return [*work(batch, truncate=wanted, side=side)]

        with ExitStack() as held, self.holders:

            def admit(tokens: int) -> None:
                if tokens > limit:
                    raise TooManyTokens(
                        f"the request has {tokens} tokens; the limit is {limit} where each has a vector in "
                        "the answer (MEXMA_MAX_STATE_TOKENS)",
                        limit=limit,
                    )
                held.enter_context(self.state_room.of(caller.client, tokens))

            started = time.monotonic()
            small = bool(texts) and sum(map(len, texts)) <= INLINE_CHARACTERS
            receipt, job = await self._run(
                items, tokenize, inline=small, partial=False, caller=caller, admit=admit
            )
            if receipt.errors:
                raise receipt.errors[min(receipt.errors)]
            states = [one for one in job.states or () if one is not None]
            self._tell(receipt, started)
            if self.language_meter is not None and texts and not is_ours(caller):
                self.language_meter.observe(texts, receipt.tokens)
            yield TokenStates(**vars(receipt), states=states)

    async def pieces(self, texts: Sequence[str], *, special: bool) -> list[list[Piece]]:
        """The tokens of texts, which are not embedded. special: those around each, too. Raises InputError
        or EngineError."""
        self.check_count(len(texts))
        tokenizer = self.encoder.tokenizer
        with self.holders:
            return await asyncio.get_running_loop().run_in_executor(
                self._tokenizers, lambda: tokenizer.pieces(texts, special=special)
            )

    def _lane(self, tokens: int) -> Lane:
        """Of a request that does not say."""
        return "interactive" if tokens <= self.settings.interactive_tokens else "bulk"

    def _is_idle(self) -> bool:
        """Whether nothing is before what is submitted now, as far as is known: not of an engine elsewhere."""
        batcher = self.batcher
        return not (self._submit or batcher.queued_tokens or batcher.running_s())

    def _limit_s(self, caller: Caller) -> float:
        """How long a request may take, by whoever is less patient."""
        limit_s = self.settings.request_timeout_s
        return limit_s if caller.timeout_s is None else min(limit_s, caller.timeout_s)

    def refusal(self, body_bytes: int, caller: Caller, coming: int) -> Overloaded | None:
        """What a request with a body of this size will be told, where it is clear that the queue has no
        room for it; before anything is parsed, since under overload most requests are refused.
        coming: requests that were let in and are not in the queue yet."""
        nobody_waits = not (self.batcher.queued_tokens or coming)
        if nobody_waits or self.settings.cache_mb:  # hits need no room
            return None
        tokens = max(3, body_bytes // BYTES_PER_TOKEN)
        lane = caller.lane or self._lane(tokens)
        if caller.lane is None and lane != self._lane(tokens * 4):
            return None  # it might be of the other one
        return self.batcher.refusal(
            tokens,
            lane=lane,
            client=caller.client,
            deadline=time.monotonic() + self._limit_s(caller),
            claim=claims.current.get(),
            coming=coming,
        )

    def check_count(self, count: int) -> None:
        """Raises TooManyItems when a request holds more items than it may."""
        limit = self.settings.max_request_items
        if count > limit:
            raise TooManyItems(f"{count} items were sent; the limit is {limit}", limit=limit)

    async def _tokenize_on_threads(
        self, items: Sequence[T], tokenize: Callable[[Sequence[T]], list[Tokens]], partial: bool
    ) -> tuple[list[Tokens | None], dict[int, InputError]]:
        """As `_tokenize`. A large request by several threads where they keep no engine from its cores."""
        count = 1
        if self._tokenizes_apart:
            count = max(1, min(self.tokenizer_threads, len(items) // ITEMS_APART))
        loop = asyncio.get_running_loop()
        bounds = [len(items) * n // count for n in range(count + 1)]
        parts = await asyncio.gather(
            *(
                loop.run_in_executor(
                    self._tokenizers, _tokenize, items[first:last], tokenize, partial, first
                )
                for first, last in pairwise(bounds)
            ),
            return_exceptions=True,
        )
        tokens: list[Tokens | None] = []
        failed: dict[int, InputError] = {}
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            tokens += part[0]
            failed |= part[1]
        return tokens, failed

    async def _embed(
        self,
        items: Sequence[T],
        tokenize: Callable[[Sequence[T]], list[Tokens]],
        *,
        inline: bool,
        partial: bool,
        caller: Caller,
    ) -> Embedded:
        started = time.monotonic()
        receipt, job = await self._run(
            items, tokenize, inline=inline, partial=partial, caller=caller
        )
        if receipt.errors and not partial:
            raise receipt.errors[min(receipt.errors)]
        if not receipt.errors and job.vectors is not None:
            vectors = job.vectors
        else:
            vectors = np.zeros((len(items), self.encoder.manifest.dim), np.float32)
            if job.vectors is not None:
                vectors[[i for i, t in enumerate(receipt.tokens) if t is not None]] = job.vectors
        self._tell(receipt, started)
        return Embedded(**vars(receipt), vectors=vectors)

    async def _run(
        self,
        items: Sequence[T],
        tokenize: Callable[[Sequence[T]], list[Tokens]],
        *,
        inline: bool,
        partial: bool,
        caller: Caller,
        admit: Callable[[int], None] | None = None,
    ) -> tuple[Receipt, Job]:
        """Through the queue. partial: whether bad items leave the others. admit: the states of the tokens
        are wanted; asked with how many there are, before they cost anything."""
        self.check_count(len(items))
        started = time.monotonic()
        limit_s = self._limit_s(caller)
        alone = False
        try:
            async with asyncio.timeout(limit_s):
                if inline:
                    tokens, failed = _tokenize(items, tokenize, partial)
                else:
                    tokens, failed = await self._tokenize_on_threads(items, tokenize, partial)
                tokenize_s = time.monotonic() - started
                sequences = [t.ids for t in tokens if t is not None]
                more = {}
                if admit is not None:
                    admit(sum(map(len, sequences)))
                    more = {"states": True}
                internal = is_ours(caller)
                alone = self._is_idle()
                with quotas.spending(0 if internal else sum(map(len, sequences))):
                    job = await (self._submit or self.batcher.submit)(
                        sequences,
                        lane=caller.lane or self._lane(sum(map(len, sequences))),
                        client=SERVICE if internal else caller.client,
                        deadline=started + limit_s,
                        claim=None if internal else claims.current.get(),
                        **more,
                    )
        except (TimeoutError, DeadlineExceeded):
            raise DeadlineExceeded(
                f"the vectors were not ready within {limit_s:g} s, "
                + (
                    "with nothing before them"
                    if alone
                    else "perhaps because of others' before them"
                )
                + "; send fewer texts at once or wait longer"
                + ("" if alone else ", or retry when the service is less busy")
            ) from None
        errors: dict[int, InputError | EngineError] = dict(failed)
        good = [i for i, t in enumerate(tokens) if t is not None] if job.errors else []
        for index, error in job.errors.items():
            errors[good[index]] = error
        return Receipt(tokens, errors, tokenize_s, job.queue_s or 0.0, job.inference_s), job

    def _tell(self, receipt: Receipt, started: float) -> None:
        """The trace, and the metrics."""
        if (trace := tracing.current.get()) is not None:
            trace.stages(
                started,
                {
                    "tokenize": receipt.tokenize_s,
                    "queue": receipt.queue_s,
                    "engine": time.monotonic() - started - receipt.tokenize_s - receipt.queue_s,
                },
                **{"mexma.items": len(receipt.tokens), "mexma.tokens": receipt.token_count},
            )
        self.metrics.embedded(
            items=len(receipt.tokens),
            tokens=receipt.token_count,
            truncated=sum(t is not None and t.seen > len(t) for t in receipt.tokens),
            tokenize_s=receipt.tokenize_s,
            queue_s=receipt.queue_s,
            inference_s=receipt.inference_s,
        )


def _tokenizer_threads(settings: Settings) -> int:
    """Beside an engine that needs the cores two, of each process; else half of them among all processes."""
    if settings.device == "cpu":
        return 2
    cores = len(os.sched_getaffinity(0)) // 2
    return max(2, min(MOST_THREADS, cores // max(1, settings.http_workers)))


def _tokenize(
    items: Sequence[T],
    tokenize: Callable[[Sequence[T]], list[Tokens]],
    partial: bool,
    first: int = 0,
) -> tuple[list[Tokens | None], dict[int, InputError]]:
    """first: the number of the first of these among a request's."""
    try:
        return list(tokenize(items)), {}
    except InputError as error:
        if not partial:
            raise _moved(error, first) from None
    tokens: list[Tokens | None] = []
    failed: dict[int, InputError] = {}
    for i, item in enumerate(items):
        try:
            tokens += tokenize([item])
        except InputError as error:
            tokens.append(None)
            failed[first + i] = _moved(error, first + i)
    return tokens, failed


def _moved(error: InputError, by: int) -> InputError:
    """The same of an item that is further behind."""
    if error.item is None or not by:
        return error
    item = error.item + by
    said = str(error).replace(f"item {error.item}", f"item {item}", 1)
    return type(error)(said, item=item, limit=error.limit)

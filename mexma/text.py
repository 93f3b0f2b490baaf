"""Strings to token ids, and an honest account of what was cut.

Refuses to know: models, batches of requests, HTTP. The tokenizer is a Hugging Face
`tokenizer.json` of any kind; truncation is done here and not by the tokenizer, because
the caller has to be told how many tokens there were and where the text was cut.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers

from mexma.errors import (
    EmptyText,
    EngineError,
    InputError,
    TextTooLong,
    TokenOutOfRange,
    UnencodableText,
)

T = TypeVar("T")
Side = Literal["right", "left"]

# What is tokenised at once. The library takes some 150 bytes a character until it is done: a text of
# 15 MB in one piece took 2.3 GB, of which the allocator kept half.
GROUP_CHARACTERS = 2**17
# White space is looked for so far back.
LONGEST_WORD = 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of a text. text: as it stands there, or the special token's name. start, stop: in characters
    of the text, None for a special token; 0 for those of the encoder's prefix."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the encoder sees it.

    ids: int64 `[length]`, special tokens included. seen: tokens of the whole text, special
    tokens and prefix included; `seen > len(ids)` means the text was truncated. cut_at: the
    offset, in characters of the caller's text, of the cut (of the first character dropped
    when the right end was cut, of the first one kept when the left end was); None if
    nothing was cut.
    """

    ids: NDArray[np.int64]
    seen: int
    cut_at: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class LocatedTokens(Tokens):
    """spans: where in the caller's text each token lies, (start, end) in characters; (0, 0) for special
    tokens and those of the encoder's prefix. Letters that are one by composition may be said to end
    before their marks."""

    spans: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences that run together; each engine takes them as it needs them.

    sequences: each int64 `[length]`, length >= 1. lengths: int32 `[n]`. All else is C-contiguous and made
    when first asked for:

    Padded on the right, int64 `[n, longest]`: ids, and mask, 1 for a token and 0 for padding.
    End to end, int64 `[tokens]`: tokens, and of each the number of its sequence (rows) and where it is in
    it from 0 (places). bounds: int32 `[n + 1]`, where sequences begin and end among them.
    cells: int32 `[n, longest]`, the cells of `ids` by number, first those with tokens.
    """

    sequences: Sequence[NDArray[np.int64]]
    pad_id: int

    @classmethod
    def pad(cls, sequences: Sequence[NDArray[np.int64]], pad_id: int) -> TokenBatch:
        """A batch of `sequences`, in which `pad_id` stands for no token."""
        return cls(sequences, pad_id)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        return np.array([len(s) for s in self.sequences], np.int32)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        return np.concatenate(self.sequences)

    @cached_property
    def mask(self) -> NDArray[np.int64]:
        return (np.arange(self.lengths.max())[None, :] < self.lengths[:, None]).astype(np.int64)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        ids = np.full(self.mask.shape, self.pad_id, np.int64)
        ids[self.mask.astype(bool)] = self.tokens
        return ids

    @cached_property
    def bounds(self) -> NDArray[np.int32]:
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.lengths), dtype=np.int64), self.lengths)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        return np.arange(len(self.rows), dtype=np.int64) - self.bounds[self.rows]

    @cached_property
    def cells(self) -> NDArray[np.int32]:
        there = np.arange(self.lengths.max()) < self.lengths[:, None]
        cells = np.concatenate([np.flatnonzero(there), np.flatnonzero(~there)])
        return cells.astype(np.int32).reshape(there.shape)


def _check_text(item: int, text: str) -> None:
    if not text:
        raise EmptyText(f"item {item} is an empty string; every item needs text", item=item)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnencodableText(
            f"item {item} is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} "
            f"at character {error.start}",
            item=item,
        ) from None


def _check_size(texts: Sequence[str]) -> None:
    if (size := sum(map(len, texts))) > GROUP_CHARACTERS:
        raise InputError(
            f"expected at most {GROUP_CHARACTERS} characters in all, found {size}",
            limit=GROUP_CHARACTERS,
        )


def _groups(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of texts that hold GROUP_CHARACTERS at most, or one longer text."""
    first = size = 0
    for i, text in enumerate(texts):
        if i > first and size + len(text) > GROUP_CHARACTERS:
            yield first, i
            first, size = i, 0
        size += len(text)
    if first < len(texts):
        yield first, len(texts)


def _end_of_piece(text: str, start: int) -> int:
    """Before the last white space within GROUP_CHARACTERS, where there is one: words are tokenised
    each by itself."""
    end = start + GROUP_CHARACTERS
    if end >= len(text):
        return len(text)
    for i in range(end, max(start, end - LONGEST_WORD), -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return end


def _end_of_letter(text: str, end: int) -> int:
    """`end`, or further where what follows composes with the letter before it: the library says of a
    composed letter that it comes from the first of its parts."""
    start = max(0, end - 1)
    while end < len(text) and len(unicodedata.normalize("NFC", text[start : end + 1])) == 1:
        end += 1
    return end


def _is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up: pyo3's exception can neither be imported nor is it an Exception."""
    return type(error).__name__ == "PanicException"


def _composing(normalizer: Any) -> Any:
    """`normalizer` after Unicode's composition (NFC), so that a text has one vector however its letters are
    written: by a Mac's file names "한" is three letters and "ệ" is an "e" with two marks.

    SentencePiece composes, and XLM-R's vocabulary was made so; the library's reading of its table does
    not, where a letter takes more than five bytes (tokenizers 0.23): texts in Korean and Vietnamese had
    cosines of 0.4 and 0.6 to themselves. Composed texts, nearly all there are, keep their tokens.
    """
    composed = normalizers.NFC()
    return composed if normalizer is None else normalizers.Sequence([composed, normalizer])


class TextTokenizer:
    """A tokenizer with its length limit and the prefix its encoder was trained with."""

    def __init__(self, tokenizer_json: bytes, *, max_tokens: int, prefix: str = ""):
        """Raises ValueError when `tokenizer_json` is not a tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
            self._tokenizer.normalizer = _composing(self._tokenizer.normalizer)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            tried = self._tokenizer.encode("a")
        except BaseException as error:
            # The library raises plain Exception, and where it panics not even that.
            if isinstance(error, Exception) or _is_panic(error):
                raise ValueError(f"not a tokenizer.json: {error}") from error
            raise
        special, ids = np.array(tried.special_tokens_mask, bool), np.array(tried.ids, np.int64)
        if special.all():
            raise ValueError("not a tokenizer.json that can be used: it gives no token for 'a'")
        first, last = np.flatnonzero(~special)[[0, -1]]
        self._head, self._tail = ids[:first], ids[last + 1 :]
        self.overhead_tokens = len(self._head) + len(self._tail)
        self.max_tokens = max_tokens
        self.prefix = prefix
        self.vocabulary_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.hash = hashlib.sha256(tokenizer_json).hexdigest()
        if max_tokens <= self.overhead_tokens:
            raise ValueError(
                f"max_tokens must exceed the {self.overhead_tokens} special tokens, got {max_tokens}"
            )

    def encode(
        self, texts: Sequence[str], *, truncate: bool = True, side: Side = "right"
    ) -> list[Tokens]:
        """Tokenize `texts`; each result is at most `max_tokens` long.

        side: the end that is cut when a text is too long. Raises EmptyText,
        UnencodableText, or, with `truncate=False`, TextTooLong; each names the item. Raises EngineError
        when the tokenizer itself fails.
        """
        for item, text in enumerate(texts):
            _check_text(item, text)
        prefixed = [self.prefix + text for text in texts] if self.prefix else list(texts)
        out: list[Tokens] = []
        for first, last in _groups(prefixed):
            group = prefixed[first:last]
            if len(group[0]) > GROUP_CHARACTERS:
                out.append(self._fit_long(first, group[0], truncate=truncate, side=side))
                continue
            encoded = self._guarded(self._tokenizer.encode_batch_fast, group)
            out += [
                self._fit(item, np.array(e.ids, np.int64), text, truncate=truncate, side=side)
                for item, (e, text) in enumerate(zip(encoded, group, strict=True), first)
            ]
        return out

    def locate(
        self, texts: Sequence[str], *, truncate: bool = True, side: Side = "right"
    ) -> list[LocatedTokens]:
        """As `encode`, and where the tokens lie. Raises InputError for more than GROUP_CHARACTERS in all,
        too."""
        _check_size(texts)
        for item, text in enumerate(texts):
            _check_text(item, text)
        return [self._locate(item, text, truncate, side) for item, text in enumerate(texts)]

    def _locate(self, item: int, text: str, truncate: bool, side: Side) -> LocatedTokens:
        whole = self.prefix + text
        encoded = self._guarded(self._tokenizer.encode, whole)
        ids = np.array(encoded.ids, np.int64)
        tokens = self._fit(item, ids, whole, truncate=truncate, side=side)
        head, tail = len(self._head), len(self._tail)
        room = len(tokens) - head - tail
        first = head if side == "right" else tokens.seen - tail - room
        spans = [(0, 0)] * len(tokens)
        for place, (start, end) in enumerate(encoded.offsets[first : first + room], head):
            if end > len(self.prefix):
                spans[place] = max(0, start - len(self.prefix)), end - len(self.prefix)
        return LocatedTokens(tokens.ids, tokens.seen, tokens.cut_at, spans)

    def decode(self, ids: NDArray[np.int64]) -> str:
        """What tokens, int64 `[length]`, stand for, without special ones; not always what was encoded."""
        text: str = self._guarded(self._tokenizer.decode, ids.tolist(), skip_special_tokens=True)
        return text

    def pieces(self, texts: Sequence[str], *, special: bool = True) -> list[list[Piece]]:
        """All tokens of each text, as `encode` counts them. special: those around it, too.

        Raises EmptyText or UnencodableText naming the item, InputError for more than GROUP_CHARACTERS in
        all, and EngineError when the tokenizer itself fails.
        """
        _check_size(texts)
        for item, text in enumerate(texts):
            _check_text(item, text)
        return [self._pieces(text, special) for text in texts]

    def _pieces(self, text: str, special: bool) -> list[Piece]:
        whole = self.prefix + text
        found = self._guarded(self._tokenizer.encode, whole, add_special_tokens=special)
        pieces = []
        for token, name, (start, stop), is_special in zip(
            found.ids, found.tokens, found.offsets, found.special_tokens_mask, strict=True
        ):
            if is_special:
                pieces.append(Piece(token, name, special=True, start=None, stop=None))
            else:
                at, end = (max(0, offset - len(self.prefix)) for offset in (start, stop))
                pieces.append(Piece(token, whole[start:stop], special=False, start=at, stop=end))
        return pieces

    def _guarded(self, work: Callable[..., T], *texts: Any, **options: bool) -> T:
        """What the library's own code gives. Raises EngineError when it fails."""
        try:
            return work(*texts, **options)
        except BaseException as error:
            if isinstance(error, Exception) or _is_panic(error):
                raise EngineError(f"the tokenizer failed: {error}") from error
            raise

    def _fit_long(self, item: int, text: str, *, truncate: bool, side: Side) -> Tokens:
        """As `_fit`, for a text of any length (with its prefix): read piece by piece, of which only the
        tokens that are kept stay in memory. Where a piece cannot end before white space, in a word or a
        run of spaces of over LONGEST_WORD characters, the count of tokens seen may be off by one."""
        room = self.max_tokens - self.overhead_tokens
        seen, at = 0, 0
        kept: list[tuple[int, int, int]] = []  # id, start, end
        while at < len(text):
            end = _end_of_piece(text, at)
            piece = text[at:end]
            encoded = self._guarded(self._tokenizer.encode, piece, add_special_tokens=False)
            tokens, offsets = encoded.ids, encoded.offsets
            seen += len(tokens)
            wanted = slice(room - len(kept)) if side == "right" else slice(-room, None)
            if side == "left" or len(kept) < room:
                found = zip(tokens[wanted], offsets[wanted], strict=True)
                kept += [(token, at + start, at + stop) for token, (start, stop) in found]
            kept = kept[:room] if side == "right" else kept[-room:]
            at = end
        self._check(item, seen + self.overhead_tokens, truncate)
        cut_at = None
        if seen > room:
            cut = _end_of_letter(text, kept[-1][2]) if side == "right" else kept[0][1]
            cut_at = max(0, cut - len(self.prefix))
        content = np.array([token for token, _, _ in kept], np.int64)
        ids = np.concatenate([self._head, content, self._tail])
        return Tokens(ids, seen + self.overhead_tokens, cut_at)

    def _check(self, item: int, seen: int, truncate: bool) -> None:
        """Raises EmptyText and TextTooLong for so many tokens, special ones included."""
        if seen <= self.overhead_tokens:
            raise EmptyText(
                f"item {item} holds no token that this model's tokenizer knows "
                "(only white space or invisible characters?)",
                item=item,
            )
        if seen > self.max_tokens and not truncate:
            raise TextTooLong(
                f"item {item} has {seen} tokens; the limit is {self.max_tokens} and truncation "
                "was refused",
                item=item,
                limit=self.max_tokens,
            )

    def from_ids(self, items: Sequence[Sequence[int]], *, truncate: bool = True) -> list[Tokens]:
        """Accept ids of this tokenizer, with or without its special tokens around them.

        Raises EmptyText, TokenOutOfRange or TextTooLong, each naming the item.
        """
        out = []
        for item, given in enumerate(items):
            for position, token in enumerate(given):
                if not 0 <= token < self.vocabulary_size:
                    raise TokenOutOfRange(
                        f"item {item} holds token id {token} at position {position}; this "
                        f"tokenizer's ids are 0 to {self.vocabulary_size - 1}",
                        item=item,
                        limit=self.vocabulary_size - 1,
                    )
            ids = np.array(given, np.int64)
            if not self._is_wrapped(ids):
                ids = np.concatenate([self._head, ids, self._tail])
            out.append(self._fit(item, ids, None, truncate=truncate, side="right"))
        return out

    def _is_wrapped(self, ids: NDArray[np.int64]) -> bool:
        head, tail = len(self._head), len(self._tail)
        return (
            self.overhead_tokens > 0
            and len(ids) >= self.overhead_tokens
            and np.array_equal(ids[:head], self._head)
            and np.array_equal(ids[len(ids) - tail :], self._tail)
        )

    def _fit(
        self, item: int, ids: NDArray[np.int64], text: str | None, *, truncate: bool, side: Side
    ) -> Tokens:
        seen = len(ids)
        self._check(item, seen, truncate)
        if seen <= self.max_tokens:
            return Tokens(ids, seen)
        head, tail = len(self._head), len(self._tail)
        room = self.max_tokens - self.overhead_tokens
        content = ids[head : seen - tail]
        kept = content[:room] if side == "right" else content[len(content) - room :]
        cut_at = None
        if text is not None:
            # only texts that are cut pay for offsets
            offsets = self._tokenizer.encode(text).offsets[head : seen - tail]
            if side == "right":
                cut = _end_of_letter(text, offsets[room - 1][1])
            else:
                cut = offsets[len(offsets) - room][0]
            cut_at = max(0, cut - len(self.prefix))
        return Tokens(np.concatenate([self._head, kept, self._tail]), seen, cut_at)

"""What waits, and what of it runs next: two lanes, fair between clients.

Pure: no threads, no event loop, no clock of its own (times are arguments), so that every promise
is tested by the order of what `take` returns (`tests/service/engine/test_lanes.py`):
- an interactive sequence waits for no bulk work but the batch that is running when it comes, and
  what bulk is owed;
- bulk work is never starved: it is owed one token for every `BULK_SHARE` interactive ones;
- between clients of a lane tokens are shared evenly, whoever sends how much;
- while a light interactive client is about, a batch has at most `quantum` tokens of each heavy one, and
  of bulk work, so that it does not wait long for the one that is running;
- while no interactive client is about at all, batches of bulk work may be larger;
- sequences of like length run together where the engine pads; where it does not, each client's run in the
  order in which they came, so that a request is not spread over more batches than it needs;
- equal sequences that wait or run are computed once;
- a batch gives vectors of its sequences or states of their tokens, and not some of each.

Refuses to know: engines, callers (a receiver is any object), HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import exp, inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mexma.batching import take_batch

Lane = Literal["interactive", "bulk"]

# Length grouping looks at this many waiting sequences, or at as many as fill so many batches: enough to
# fill any with near-equal lengths, and it bounds the sorting to well under a millisecond, or to a tenth of
# a GPU's batch. For batches of 512 texts, as on a GPU, a look at 512 found 260 with 40 % of padding, and one
# at 2,048 found 450 with 23 %.
LOOKAHEAD = 512
BATCHES_AHEAD = 4

# Interactive tokens that run for each bulk token while both lanes wait.
BULK_SHARE = 8

# A client is light beside one that sends so many times as many tokens, however long its texts.
LIGHT_SHARE = 4

# Paces are as of so long ago at most.
PACES_FOR_S = 0.02

# What is computed of a sequence is part of its key; ids take eight bytes each, so no key is another's.
STATES = b"states!"

# An interactive client is about for so long after its last request.
ABOUT_S = 5.0

SERVICE = b"\nthe service"
"""The client whose work is the service's own, such as canaries: it has turns as others have, but is nobody
who may come again, and so is never about. No header can hold it."""


@dataclass(eq=False, slots=True)
class Entry:
    """One sequence to compute, int64 `[length]`, and who wants its vector, or the states of its tokens."""

    ids: NDArray[np.int64]
    key: bytes
    lane: Lane
    client: Hashable
    receivers: list[tuple[Any, int]] = field(default_factory=list)
    running: bool = False
    states: bool = False
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.ids)

    def __len__(self) -> int:
        return self.length


@dataclass(eq=False, slots=True)
class _Flow:
    """One client's entries in one lane, oldest first.

    served: its share of the lane so far, in tokens; the flow with the least goes first. seen: when
    something of it came last, and came: tokens then, older ones counting less.
    """

    waiting: OrderedDict[Entry, None] = field(default_factory=OrderedDict)
    tokens: int = 0
    served: float = 0.0
    seen: float = 0.0
    came: float = 0.0

    def pace(self, now: float) -> float:
        """Tokens a second that come, about, over the last ABOUT_S."""
        return self.came * exp((self.seen - now) / ABOUT_S) / ABOUT_S

    def come(self, tokens: int, now: float) -> None:
        self.came = self.came * exp(min(0.0, self.seen - now) / ABOUT_S) + tokens
        self.seen = now


@dataclass(slots=True)
class _Queue:
    """One lane: the flows of its clients. clock: `served` of the flow that went last."""

    flows: dict[Hashable, _Flow] = field(default_factory=dict)
    clock: float = 0.0
    items: int = 0
    tokens: int = 0

    def by_turn(self) -> list[_Flow]:
        """Flows with something waiting, whose turn it is first."""
        return sorted((f for f in self.flows.values() if f.waiting), key=lambda f: f.served)


class Lanes:
    """The waiting sequences of one engine. tokens, items: how many wait, in both lanes.

    pads: whether the engine computes each sequence of a batch as long as the longest.
    """

    def __init__(self, *, max_batch_tokens: int, max_batch_items: int, pads: bool = True):
        self._pads = pads
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_items = max_batch_items
        self.bulk_batch_tokens = max_batch_tokens  # while no interactive client is about
        self._queues: dict[Lane, _Queue] = {"interactive": _Queue(), "bulk": _Queue()}
        self._entries: dict[bytes, Entry] = {}  # waiting and running, by content
        self._owed_to_bulk = 0.0
        self._swept = 0.0
        self._paced: dict[Lane, tuple[float, dict[Hashable, float]]] = {
            "interactive": (-inf, {}),
            "bulk": (-inf, {}),
        }
        self.tokens = 0
        self.items = 0

    def clients(self) -> int:
        """Clients that wait, of both lanes."""
        return len({c for q in self._queues.values() for c, f in q.flows.items() if f.waiting})

    def tokens_ahead(self, lane: Lane) -> int:
        """Tokens that wait and go before more of `lane`; bulk work goes before no interactive one."""
        return self._queues["interactive"].tokens if lane == "interactive" else self.tokens

    def tokens_of(self, client: Hashable) -> int:
        """Tokens that wait for `client`, in both lanes."""
        flows = (q.flows.get(client) for q in self._queues.values())
        return sum(f.tokens for f in flows if f is not None)

    def wait_s(
        self, client: Hashable, lane: Lane, tokens: int, *, tokens_per_s: float, now: float
    ) -> float:
        """About how long until the last of `tokens` more of `client` begins.

        Each other client of the lane goes as often as it does: with what waits, and with what will
        have come meanwhile at the pace of lately. So one that has much waiting among many that have
        nothing waits longer than the queue is long.
        """
        rate = tokens_per_s
        interactive, bulk = self._queues["interactive"], self._queues["bulk"]
        if lane == "bulk":
            busy = sum(f.pace(now) for f in interactive.flows.values())
            rate = max(rate - busy, rate / (BULK_SHARE + 1))
        elif bulk.tokens:
            rate *= BULK_SHARE / (BULK_SHARE + 1)
        flows = self._queues[lane].flows
        flow = flows.get(client)
        own = flow.tokens if flow is not None else 0
        most = own + tokens
        # Its own is among them: as much as it has.
        before = sum([f.tokens if f.tokens < most else most for f in flows.values()])
        if lane == "bulk":
            before += interactive.tokens
        paces = self._paces(lane, now)
        others = len(paces) - (client in paces)
        come = sum(paces.values()) - paces.get(client, 0.0)
        left = max(rate - come, rate / (others + 1))
        return max(before / rate, own / left)

    def _paces(self, lane: Lane, now: float) -> dict[Hashable, float]:
        """Tokens a second that come of each client that sends any to speak of; as of PACES_FOR_S ago at
        most, since under overload each refusal asks."""
        since, paces = self._paced[lane]
        if not 0 <= now - since < PACES_FOR_S:
            flows = self._queues[lane].flows
            paces = {c: pace for c, f in flows.items() if (pace := f.pace(now)) > 1}
            self._paced[lane] = now, paces
        return paces

    def add(
        self, ids: NDArray[np.int64], receiver: tuple[Any, int], *, lane: Lane, client: Hashable,
        now: float, first: bool = False, states: bool = False,
    ) -> Entry:  # fmt: skip
        """Put a sequence in, or join one with the same ids; `receiver` gets its vector, or its tokens'
        states. first: before what else waits of this client."""
        key = ids.tobytes() + STATES if states else ids.tobytes()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(ids, key, lane, client, states=states)
            self._enqueue(entry, now, first)
        elif entry.lane == "bulk" and lane == "interactive" and not entry.running:
            # what someone waits for is no longer bulk work
            self._dequeue(entry)
            entry.lane, entry.client = lane, client
            self._enqueue(entry, now)
        entry.receivers.append(receiver)
        return entry

    def leave(self, entry: Entry, receiver: Any) -> None:
        """`receiver` no longer wants `entry`; when nobody does, it leaves the queue."""
        entry.receivers = [r for r in entry.receivers if r[0] is not receiver]
        if not entry.receivers and not entry.running and self._entries.get(entry.key) is entry:
            self._dequeue(entry)
            del self._entries[entry.key]

    def gives_way(self, now: float, quantum: float) -> bool:
        """Whether something that waits gives way to a light interactive client that is about."""
        if not self._light_about(now, quantum):
            return False
        heavy = (
            flow.waiting and not self._is_light(flow, now, quantum)
            for flow in self._queues["interactive"].flows.values()
        )
        return self._queues["bulk"].items > 0 or any(heavy)

    def take(self, now: float, *, quantum: float, most: float = inf) -> list[Entry]:
        """The sequences to run next, or none when nothing waits.

        quantum: tokens of a batch that does not keep a light interactive client waiting. most: tokens
        of an interactive batch. The entries stay joinable by `add` until `finish`.
        """
        lane = self.next_lane(quantum)
        if lane is None:
            return []
        queue = self._queues[lane]
        flows = queue.by_turn()
        head = next(iter(flows[0].waiting))
        budget: float = self.max_batch_tokens
        items = self.max_batch_items
        if lane == "bulk":
            if self._light_about(now, quantum):
                budget = min(budget, quantum)
            elif not self._interactive_about(now):
                items = items * self.bulk_batch_tokens // self.max_batch_tokens
                budget = self.bulk_batch_tokens
            caps = [inf] * len(flows)
        else:
            budget = min(budget, most)
            light = self._light_about(now, quantum)
            caps = [
                quantum if light and not self._is_light(f, now, quantum) else inf for f in flows
            ]
        if head.states:  # as large as vectors times the tokens: no larger batches than the usual
            budget = min(budget, self.max_batch_tokens)
        # Who wants states where these are vectors, or the reverse, waits for a batch of its own.
        if self._pads:
            candidates = [c for c in _fairly(flows, caps, items) if c.states == head.states]
            chosen = take_batch(
                [c.length for c in candidates],
                candidates.index(head),
                max_tokens=int(budget),
                max_items=items,
            )
            batch = [candidates[i] for i in chosen]
        else:
            batch = _by_turn(flows, caps, states=head.states, tokens=budget, items=items)
        queue.clock = flows[0].served
        for entry in batch:
            queue.flows[entry.client].served += entry.length
            self._dequeue(entry)
            entry.running = True
        if not queue.items:  # an idle lane owes nobody anything
            queue.clock = max(queue.clock, *(queue.flows[e.client].served for e in batch))
        self._settle_debt(lane, tokens_in(batch))
        self._sweep(now)
        return batch

    def finish(self, batch: list[Entry]) -> None:
        """The entries of a batch are computed: nobody can join them any more."""
        for entry in batch:
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]

    def clear(self) -> list[Entry]:
        """Take out everything, what is running too."""
        entries = list(self._entries.values())
        for entry in entries:
            if not entry.running:
                self._dequeue(entry)
        self._entries.clear()
        return entries

    def next_lane(self, quantum: float) -> Lane | None:
        """Whose turn it is; None when nothing waits."""
        interactive, bulk = self._queues["interactive"], self._queues["bulk"]
        if not interactive.items:
            return "bulk" if bulk.items else None
        if bulk.items and self._owed_to_bulk >= min(quantum, self.max_batch_tokens):
            return "bulk"
        return "interactive"

    def _settle_debt(self, lane: Lane, tokens: int) -> None:
        if not self._queues["bulk"].items:
            self._owed_to_bulk = 0.0
        elif lane == "interactive":
            self._owed_to_bulk += tokens / BULK_SHARE
        elif self._queues["interactive"].items:
            self._owed_to_bulk -= tokens

    def _interactive_about(self, now: float) -> bool:
        """Whether any interactive client was seen lately."""
        flows = self._queues["interactive"].flows.items()
        return any(now - flow.seen <= ABOUT_S for client, flow in flows if client != SERVICE)

    def _light_about(self, now: float, quantum: float) -> bool:
        """Whether a light interactive client was seen lately."""
        return any(
            now - flow.seen <= ABOUT_S and self._is_light(flow, now, quantum)
            for client, flow in self._queues["interactive"].flows.items()
            if client != SERVICE
        )

    def _is_light(self, flow: _Flow, now: float, quantum: float) -> bool:
        """Whether little of an interactive client waits now, or has come lately beside another's."""
        if flow.tokens < quantum:
            return True
        heaviest = max(f.pace(now) for f in self._queues["interactive"].flows.values())
        return flow.pace(now) * LIGHT_SHARE <= heaviest

    def _enqueue(self, entry: Entry, now: float, first: bool = False) -> None:
        queue = self._queues[entry.lane]
        flow = queue.flows.get(entry.client)
        if flow is None:
            flow = queue.flows[entry.client] = _Flow()
        if not flow.waiting:  # having been away earns nothing
            flow.served = max(flow.served, queue.clock)
        flow.waiting[entry] = None
        if first:
            flow.waiting.move_to_end(entry, last=False)
        flow.come(entry.length, now)
        flow.tokens += entry.length
        queue.items += 1
        queue.tokens += entry.length
        self.tokens += entry.length
        self.items += 1

    def _dequeue(self, entry: Entry) -> None:
        queue = self._queues[entry.lane]
        flow = queue.flows[entry.client]
        del flow.waiting[entry]
        flow.tokens -= entry.length
        queue.items -= 1
        queue.tokens -= entry.length
        self.tokens -= entry.length
        self.items -= 1

    def _sweep(self, now: float) -> None:
        """Forget clients that are gone, now and then."""
        if now - self._swept <= ABOUT_S:
            return
        self._swept = now
        for queue in self._queues.values():
            gone = [
                client
                for client, flow in queue.flows.items()
                if not flow.waiting and now - flow.seen > ABOUT_S and flow.served <= queue.clock
            ]
            for client in gone:
                del queue.flows[client]


def _fairly(flows: list[_Flow], caps: list[float], items: int) -> list[Entry]:
    """As many waiting entries as are looked at for a batch of `items`, about as many of each flow.

    caps: tokens that a flow may contribute. The oldest entry of the first flow, whose turn it is,
    always is among them; a long one of another waits for its turn.
    """
    most = max(LOOKAHEAD, BATCHES_AHEAD * items)
    share = max(1, most // len(flows))
    found: list[Entry] = []
    for flow, cap in zip(islice(flows, most), caps, strict=False):
        tokens = 0
        for entry in islice(flow.waiting, share):
            tokens += entry.length
            if tokens > cap and found:
                break
            found.append(entry)
    return found


@dataclass(eq=False, slots=True)
class _Turn:
    """What a batch may take of one flow: the next entry, those after it, and so many tokens."""

    entry: Entry | None
    rest: Iterator[Entry]
    cap: float


def _by_turn(
    flows: list[_Flow], caps: list[float], *, states: bool, tokens: float, items: int
) -> list[Entry]:
    """At most `tokens` and `items` of waiting entries: of each flow the oldest, and of all flows as much
    as of any, as far as they have it.

    caps: tokens that a flow may contribute. The oldest entry of the first flow, whose turn it is, always
    is among them, however long; a long one of another waits for its turn. states: what is to be computed.
    """
    found: list[Entry] = []
    turns = []
    for flow, cap in zip(islice(flows, items), caps, strict=False):
        near = islice(flow.waiting, max(LOOKAHEAD, BATCHES_AHEAD * items))
        rest = (e for e in near if e.states == states)
        turns.append(_Turn(next(rest, None), rest, cap))
    while turns and len(found) < items:
        share, room = tokens / len(turns), max(1, (items - len(found)) // len(turns))
        again = []
        for turn in turns:
            most, taken, count = min(share, turn.cap), 0, 0
            while (entry := turn.entry) is not None and count < room and len(found) < items:
                fits = entry.length <= tokens and entry.length <= turn.cap
                if found and not (fits and (not count or taken + entry.length <= most)):
                    break
                found.append(entry)
                count += 1
                taken += entry.length
                tokens -= entry.length
                turn.cap -= entry.length
                turn.entry = next(turn.rest, None)
            if count and turn.entry is not None:
                again.append(turn)
        turns = again
    return found


def tokens_in(entries: Iterable[Entry]) -> int:
    """Without padding."""
    return sum([entry.length for entry in entries])


def entries_by_receiver(batch: list[Entry]) -> Iterator[tuple[Any, int, int]]:
    """(receiver, its index, position in the batch) of all who wait for a batch."""
    for position, entry in enumerate(batch):
        for receiver, index in entry.receivers:
            yield receiver, index, position

"""Turns between clients, on a real event loop: who has sent little does not wait for who has sent much."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from fastapi.responses import Response

from mexma.errors import Overloaded
from service.caller import Caller
from service.schemas import EmbeddingRequest
from service.shortcut import Shortcut
from service.turns import Turns


async def begun(turns: Turns, clients: list[str]) -> list[str]:
    """The order in which requests begin that all come in one round of the loop."""
    order: list[str] = []

    async def request(client: str) -> None:
        await turns.mine(client)
        order.append(client)

    await asyncio.gather(*map(request, clients))
    return order


def test_a_request_among_hundreds_of_another_client_is_among_the_first():
    order = asyncio.run(begun(Turns(at_once=4), ["large"] * 300 + ["small"]))
    assert order.index("small") <= 5
    assert len(order) == 301


def test_clients_take_turns_and_each_keeps_its_own_order():
    async def scenario() -> list[tuple[str, int]]:
        turns, order = Turns(at_once=2), []

        async def request(client: str, number: int) -> None:
            await turns.mine(client)
            order.append((client, number))

        await asyncio.gather(*(request(c, n) for c in "abc" for n in range(20)))
        return order

    order = asyncio.run(scenario())
    for client in "abc":
        assert [n for c, n in order if c == client] == list(range(20))
    waited = [c for c, _ in order[2:]]  # two of a began before anybody waited
    for start in range(0, 51, 3):
        assert sorted(waited[start : start + 3]) == ["a", "b", "c"]


def test_who_is_refused_does_not_wait_for_a_turn_and_is_told_of_those_who_do():
    async def scenario() -> tuple[int, int]:
        turns, seen = Turns(at_once=1), []
        waiting = [asyncio.create_task(turns.mine("large")) for _ in range(50)]
        await asyncio.sleep(0)

        def refusal(_: int, __: Caller, coming: int) -> Overloaded:
            seen.append(coming)
            return Overloaded("full; retry later", retry_after_s=1.0)

        async def never(*_: object) -> Response:
            raise AssertionError

        way = Shortcut(EmbeddingRequest, never, client_header="", refusal=refusal)
        scope = {"type": "http", "path": "/v1/embeddings", "headers": []}
        headers = {b"content-type": b"application/json"}
        answer = await way(b"{}", headers, scope, never, turns)  # type: ignore[arg-type]
        left = turns.waiting
        await asyncio.gather(*waiting)
        assert answer is not None and turns.waiting == 0
        return answer.status_code, seen[0] - left

    assert asyncio.run(scenario()) == (503, 0)


def test_the_loop_does_other_things_between():
    """What is received meanwhile is received: few begin in a round."""

    async def scenario() -> list[int]:
        turns, begun, seen = Turns(at_once=4), [], []

        async def request() -> None:
            await turns.mine("one")
            begun.append(1)

        work = asyncio.gather(*(request() for _ in range(100)))
        while not work.done():
            seen.append(len(begun))
            await asyncio.sleep(0)
        return [b - a for a, b in pairwise(seen)]

    assert max(asyncio.run(scenario())) <= 8


def test_who_is_cancelled_takes_nobody_s_turn():
    async def scenario() -> int:
        turns, begun = Turns(at_once=1), []

        async def request(client: int) -> None:
            await turns.mine(client)
            begun.append(client)

        tasks = [asyncio.create_task(request(i)) for i in range(10)]
        await asyncio.sleep(0)
        for task in tasks[2:9]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        return len(begun)

    assert asyncio.run(scenario()) == 3


@pytest.mark.parametrize("at_once", [1, 4])
def test_one_after_the_other_waits_for_nothing(at_once):
    async def scenario() -> None:
        turns = Turns(at_once=at_once)
        for _ in range(10):
            assert await begun(turns, ["one"]) == ["one"]

    asyncio.run(scenario())

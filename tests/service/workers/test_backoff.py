"""Workers that die at their start: ever later replaced, said, and back by themselves."""

from __future__ import annotations

import re
import time

import httpx
from hypothesis import given
from hypothesis import strategies as st

from service.workers.backoff import FAILING, LONGEST_S, STEADY_S, Backoff, notice, put_notice
from service.workers.stand_in import answer_to
from tests.conftest import Server, alive, start_server

# `mexma-serve`, whose workers die at their start unless a file is there.
SCRIPT = """
import os, pathlib, service.__main__ as command
from service.workers.front import Front

real = command._run

def run(settings, listener, app, **options):
    if isinstance(app, Front) and not pathlib.Path({well!r}).exists():
        os._exit(7)
    real(settings, listener, app, **options)

command._run = run
command.main([])
"""


def test_who_dies_after_a_while_is_replaced_at_once():
    backoff, now = Backoff(), 100.0
    for _ in range(50):
        assert backoff.room(2, now) == 2
        backoff.started(now)
        now += STEADY_S
        backoff.look(now)
        assert backoff.ended(STEADY_S, now) == 0
    assert not backoff.failing


def test_who_dies_young_again_and_again_waits_longer_up_to_a_limit_and_alone():
    backoff, now, pauses = Backoff(), 0.0, []
    for i in range(12):
        assert backoff.room(4, now) == (4 if i < FAILING else 1)
        backoff.started(now)
        assert backoff.room(3, now) == (3 if i < FAILING else 0), "the others wait for this one"
        pauses.append(backoff.ended(0.1, now + 0.1))
        assert backoff.room(4, now + 0.1) == 0
        now += 0.1 + pauses[-1]
        backoff.look(now)
    assert pauses == [0.5, 1, 2, 4, 8, 16, *[LONGEST_S] * 6]
    assert backoff.failing
    backoff.started(now)
    backoff.look(now + STEADY_S - 0.1)
    assert backoff.failing
    backoff.look(now + STEADY_S)
    assert not backoff.failing
    assert backoff.room(3, now + STEADY_S) == 3


@given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=60))
def test_workers_always_come_back_and_never_in_a_hurry(steps):
    """However long each lives, and whether one that lives long was there beside it or not."""
    backoff, now = Backoff(), 0.0
    for lives_s, another_dies_old in steps:
        waited = 0.0
        while not backoff.room(1, now):
            now, waited = now + 0.5, waited + 0.5
            backoff.look(now)
            assert waited <= LONGEST_S + STEADY_S
        backoff.started(now)
        now += lives_s
        backoff.look(now)
        before = backoff.deaths
        if another_dies_old:
            backoff.ended(STEADY_S + 1, now)
            assert backoff.deaths == before
        if lives_s < STEADY_S:
            assert backoff.ended(lives_s, now) >= 0.5
            assert backoff.deaths == before + 1
        else:
            assert backoff.deaths == 0
            backoff.ended(lives_s, now)


def test_a_notice_is_there_until_it_is_taken_back(tmp_path):
    assert notice(tmp_path) is None
    put_notice(tmp_path, "three died")
    assert notice(tmp_path) == "three died"
    put_notice(tmp_path, None)
    put_notice(tmp_path, None)
    assert notice(tmp_path) is None


def test_the_stand_in_refuses_each_in_its_shape_and_survives_nonsense():
    for path, says in {
        b"/health/ready?x=1": b'"reason":"workers_failing"',
        b"/health": b'"error_type":"Unhealthy"',
        b"/health/live": b'"code":"engine_away"',
        b"/embed": b'"error_type":"Overloaded"',
        b"/v1/embeddings": b'"code":"engine_away"',
    }.items():
        answer = answer_to(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n", "three died")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert says in body
        assert b"three died" in body
        assert b"retry-after: " in head
        assert b"content-length: %d" % len(body) in head
    for nonsense in (b"", b"\xff" * 99, b"GET", b"GET /", b"\x16\x03\x01 a b c"):
        assert answer_to(nonsense, "x").startswith(b"HTTP/1.1 503 ")


def ready(server: Server) -> dict | None:
    """What it says, None where nobody answered."""
    assert server.process.poll() is None, server.log.read_text()
    try:
        return httpx.get(f"{server.url}/health/ready", timeout=10).json()
    except httpx.TransportError:
        return None


def until(server: Server, status: str, reason: str | None) -> dict:
    while True:
        said = ready(server)
        if said is not None and (said["status"], said["reason"]) == (status, reason):
            return said
        time.sleep(0.05)


def pauses(server: Server) -> list[float]:
    return [float(x) for x in re.findall(r"replaced in ([\d.]+) s", server.log.read_text())]


def test_workers_that_die_at_their_start_are_said_and_come_back(tmp_path):
    well = tmp_path / "well"
    server = start_server(
        tmp_path, script=SCRIPT.format(well=str(well)), demo="false", http_workers=2
    )
    said = until(server, "not_ready", "workers_failing")
    assert "died at their start" in said["detail"]
    while (refused := post(server)) is None:
        time.sleep(0.05)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    while len(pauses(server)) < 5:
        time.sleep(0.05)
    first = pauses(server)[:5]
    assert first == [0.5, 1, 2, 4, 8], "each waits twice as long"
    well.touch()
    until(server, "ready", None)
    answer = post(server)
    assert answer is not None
    assert answer.status_code == 200
    while len(server.children()) != 3:  # the engine and both workers, and no stand-in
        time.sleep(0.05)
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_it_ends_while_none_of_its_workers_lives(tmp_path):
    script = SCRIPT.format(well=str(tmp_path / "never"))
    server = start_server(tmp_path, script=script, demo="false", http_workers=1)
    until(server, "not_ready", "workers_failing")
    left = server.children()
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert not [p for p in left if alive(p)]


def post(server: Server) -> httpx.Response | None:
    try:
        return httpx.post(f"{server.url}/v1/embeddings", json={"input": "x"}, timeout=10)
    except httpx.TransportError:
        return None

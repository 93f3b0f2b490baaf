"""Threads that compute give way to those that answer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from service.priority import BELOW, lower, lowered
from tests.conftest import Server, start_server, wait_until_ready


def nice_of_threads(pid: int) -> dict[int, int]:
    """By the kernel's number of the thread."""
    return {
        int(task.name): os.getpriority(os.PRIO_PROCESS, int(task.name))
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def own_nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_and_the_threads_it_starts_are_below_their_caller():
    before = own_nice()

    def work() -> tuple[int, int]:
        found: list[int] = []
        child = threading.Thread(target=lambda: found.append(own_nice()))
        child.start()
        child.join()
        return own_nice(), found[0]

    lowest = max(BELOW, before)
    assert lowered(work) == (lowest, lowest)
    assert own_nice() == before


def test_what_is_low_already_stays_where_it_is():
    def twice() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        lower()
        return own_nice()

    assert lowered(twice) == 10


def test_where_it_is_forbidden_the_work_is_done_all_the_same(monkeypatch):
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    assert lowered(own_nice) == own_nice()


def test_an_error_of_the_work_is_its_caller_s():
    def fails() -> None:
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        lowered(fails)


def lowered_threads(server: Server) -> int:
    """How many of a server's threads are below its first one, the event loop's."""
    found = nice_of_threads(server.process.pid)
    loop = found.pop(server.process.pid)
    assert loop == own_nice()
    return sum(nice == max(BELOW, loop) > loop for nice in found.values())


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_a_server_s_engine_is_below_its_event_loop(tmp_path, engine):
    server = start_server(tmp_path, demo="false", engine=engine, threads=3)
    try:
        wait_until_ready(server)
        # The thread that takes batches, and two more that compute with it.
        assert lowered_threads(server) >= 3
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0

"""Whether the engine's process lives, asked of one that does, one that hangs, and none."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
import uvicorn

from service.settings import Settings
from service.workers import front as front_module
from service.workers import liveness
from service.workers.front import HTTP_SOCKET, Front, TokenizingEncoder
from tests.fakes import FakeEncoder


@pytest.fixture
def hanging(tmp_path):
    """The socket of a process that is stopped: the kernel takes connections, nobody reads them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / HTTP_SOCKET))
        listener.listen()
        yield tmp_path


async def ask(app, path: str, method: str = "GET") -> tuple[int, dict]:
    sent: list[dict] = []

    async def receive() -> dict:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": [],
        "query_string": b"", "client": None, "scheme": "http",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


def worker(folder: Path) -> Front:
    encoder = FakeEncoder()
    made = Front(
        Settings(demo=False),
        TokenizingEncoder(encoder.manifest, encoder.tokenizer),
        folder,
        pytest.fail,
    )
    made._remote._ready = True  # it was connected when the other process stopped
    return made


def test_a_worker_says_that_the_engine_hangs_without_waiting_for_its_word(hanging, monkeypatch):
    monkeypatch.setattr(front_module, "PROBE_TIMEOUT_S", 3600)

    async def main() -> None:
        app = worker(hanging)
        status, said = await asyncio.wait_for(ask(app, "/health/ready"), 60)
        assert (status, said["reason"]) == (503, "engine_away")
        status, said = await asyncio.wait_for(ask(app, "/health"), 60)
        assert (status, said["error_type"]) == (503, "Unhealthy")
        assert (await ask(app, "/health/live"))[0] == 200

    asyncio.run(main())


def test_who_hangs_and_who_is_not_there_do_not_live(hanging, tmp_path):
    for path in (hanging / HTTP_SOCKET, tmp_path / "none"):
        assert not liveness.lives(path, timeout_s=0.05)
        assert not asyncio.run(liveness.lives_soon(path, timeout_s=0.05))


def test_who_answers_lives_and_nothing_of_it_reaches_the_application(tmp_path):
    reached: list[tuple[str, str]] = []

    async def app(scope, receive, send) -> None:
        assert scope["type"] == "http"
        reached.append((scope["method"], scope["path"]))
        await send({"type": "http.response.start", "status": 405, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def main() -> None:
        path = tmp_path / HTTP_SOCKET
        config = uvicorn.Config(
            liveness.answering(app), uds=str(path), lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.001)
        assert await liveness.lives_soon(path, timeout_s=60)
        assert await asyncio.to_thread(liveness.lives, path, timeout_s=60)
        server.should_exit = True
        await serving
        assert reached == []
        assert await ask(liveness.answering(app), "/health/live", "DELETE") == (405, {})
        assert reached == [("DELETE", "/health/live")]

    asyncio.run(main())

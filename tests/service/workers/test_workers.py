"""Several processes of one service, as they are in production, and what happens when they die."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from mexma.sample import parallel_pairs, tatoeba_sample
from service.security.keys import new_key, write_keys
from tests.conftest import Server, alive, start_server, wait_until_ready

SENTENCES = [s.text for s in tatoeba_sample()][:400]
CHANGING = ("x-request-id", "server-timing", "date")


def engine(server: Server) -> int:
    """The engine's process: the one with many threads."""
    return max(server.children(), key=lambda p: len(list(Path(f"/proc/{p}/task").iterdir())))


def workers(server: Server) -> list[int]:
    return [p for p in server.children() if p != engine(server)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = start_server(tmp_path_factory.mktemp("single"), demo="false")
    wait_until_ready(made)
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("several")
    made = start_server(folder, demo="false", http_workers=2, engine_timeout_s=2)
    wait_until_ready(made)
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()
    for process in made.children() if made.process.poll() is None else []:
        pytest.fail(f"{process} outlived its supervisor")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/embeddings", {"input": SENTENCES[:9]}),
        ("POST", "/v1/embeddings", {"input": "x " * 2000, "encoding_format": "base64"}),
        ("POST", "/v1/embeddings", {"input": ["fine", ""]}),
        ("POST", "/v1/embeddings", {"input": "x", "surplus": 1}),
        ("POST", "/v1/embeddings", {"input": [5, 6, 7]}),
        ("POST", "/v1/embeddings", {"input": [5, 10**7]}),
        ("POST", "/embed", {"inputs": SENTENCES[:3]}),
        ("POST", "/embed", {"inputs": ""}),
        ("POST", "/v1/mine", {"source": SENTENCES[:3], "target": ["fine", ""]}),
        ("POST", "/embed_all", {"inputs": SENTENCES[:2]}),
        ("POST", "/embed_all", {"inputs": [SENTENCES[0], ""]}),
        ("POST", "/v1/align", {"source": SENTENCES[:2], "target": SENTENCES[2:4]}),
        ("POST", "/v1/align", {"source": "x", "target": ""}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/mexma-small", None),
        ("GET", "/v1/models/none", None),
        ("GET", "/health", None),
        ("DELETE", "/health/live", None),
        ("GET", "/info", None),
        ("POST", "/", {"inputs": SENTENCES[:3]}),
        ("POST", "/v1/embeddings/", {"input": "x"}),
        ("GET", "/info/", None),
        ("HEAD", "/info", None),
        ("HEAD", "/health", None),
        ("HEAD", "/v1/models/none", None),
        ("GET", "/openapi.json", None),
        ("GET", "/health/live", None),
        ("GET", "/v1/collections/none", None),
        ("POST", "/v1/collections/none/search", {"queries": ["x"]}),
        ("GET", "/nothing?with=query", None),
        ("DELETE", "/v1/embeddings", None),
    ],
)
def test_the_contract_is_the_same_with_workers(single, several, method, path, body):
    one = httpx.request(method, single.url + path, json=body, timeout=60)
    other = httpx.request(method, several.url + path, json=body, timeout=60)
    assert one.status_code == other.status_code
    if one.status_code == 200 and path in ("/v1/embeddings", "/embed"):
        assert one.headers["x-encoder-fingerprint"] == other.headers["x-encoder-fingerprint"]
        if isinstance(body.get("input"), list) and isinstance(body["input"][0], str):
            a, b = (
                np.array([d["embedding"] for d in r.json()["data"]], np.float32)
                for r in (one, other)
            )
            assert np.sum(a * b, axis=1).min() >= 0.9999
            assert one.json()["usage"] == other.json()["usage"]
    else:
        assert one.content == other.content
    assert one.headers.keys() == other.headers.keys()
    for name in one.headers:
        if name not in CHANGING and one.status_code != 200:
            assert one.headers[name] == other.headers[name], name
    assert len(other.headers.get_list("x-request-id")) == 1


def test_pairs_are_mined_behind_workers_too(single, several):
    german, english = parallel_pairs("de")
    body = {"source": german, "target": english[::-1]}
    one, other = (
        httpx.post(f"{server.url}/v1/mine", json=body, timeout=60).json()
        for server in (single, several)
    )
    assert len(one["pairs"]) > 50
    places = [{(p["source"], p["target"]) for p in answer["pairs"]} for answer in (one, other)]
    assert places[0] == places[1]
    assert one["usage"] == other["usage"]


def test_a_model_is_not_exchanged_under_workers_that_tokenise_for_it(several):
    for verb in ("reload", "rollback"):
        answer = httpx.post(f"{several.url}/v1/models/{verb}", json={})
        assert answer.status_code == 501
        assert "MEXMA_HTTP_WORKERS" in answer.json()["error"]["message"]


def test_collections_and_metrics_are_one_whoever_is_asked(several):
    with httpx.Client(base_url=several.url, timeout=60) as client:
        client.put("/v1/collections/shared").raise_for_status()
        document = {"documents": [{"id": "1", "text": SENTENCES[0]}]}
        client.post("/v1/collections/shared/documents", json=document).raise_for_status()
    for _ in range(6):  # connections go to either worker
        found = httpx.post(
            f"{several.url}/v1/collections/shared/search", json={"queries": [SENTENCES[0]]}
        )
        assert found.json()["results"][0][0]["id"] == "1"
        httpx.post(f"{several.url}/v1/embeddings", json={"input": "x"}).raise_for_status()
    while True:
        metrics = httpx.get(f"{several.url}/metrics").text
        line = next(x for x in metrics.splitlines() if "/v1/embeddings" in x and '"200"' in x)
        if float(line.split()[-1]) >= 6:
            break


async def load(server: Server, until: asyncio.Event) -> list[int | str]:
    """Requests of two sentences from 8 clients; their statuses, or the error of a cut connection.
    A request that hangs fails the test by its time-out."""
    outcomes: list[int | str] = []

    async def one(client: httpx.AsyncClient) -> None:
        i = 0
        while not until.is_set():
            i = (i + 2) % 400
            try:
                response = await client.post("/v1/embeddings", json={"input": SENTENCES[i : i + 2]})
            except httpx.TimeoutException as error:
                raise AssertionError("a request hung") from error
            except httpx.TransportError as error:
                outcomes.append(type(error).__name__)
                continue
            outcomes.append(response.status_code)
            if response.status_code == 503:
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["code"] == "engine_away"
                await asyncio.sleep(0.02)

    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        await asyncio.gather(*(one(client) for _ in range(8)))
    return outcomes


async def ready(client: httpx.AsyncClient, wanted: bool) -> dict[str, str]:
    while True:
        try:
            response = await client.get("/health/ready")
        except httpx.TransportError:
            continue
        if (response.status_code == 200) == wanted:
            return response.json()
        await asyncio.sleep(0.02)


def during_load(server: Server, attack) -> list[int | str]:
    async def main() -> list[int | str]:
        until = asyncio.Event()
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await ready(client, True)
            loading = asyncio.create_task(load(server, until))
            await asyncio.sleep(0.3)
            await asyncio.wait_for(attack(client), 120)
            await asyncio.sleep(0.3)
            until.set()
            return await loading

    return asyncio.run(main())


def test_a_killed_worker_is_replaced_and_only_its_connections_notice(several):
    before = workers(several)

    async def attack(client: httpx.AsyncClient) -> None:
        os.kill(before[0], signal.SIGKILL)
        while set(workers(several)) == set(before) or len(workers(several)) < 2:
            await asyncio.sleep(0.02)

    outcomes = during_load(several, attack)
    assert outcomes.count(200) > 10
    cut = [o for o in outcomes if o != 200]
    assert {o for o in cut if not isinstance(o, str)} == set(), "answers with an error"
    assert len(cut) <= 16


def test_a_killed_engine_turns_ready_off_comes_back_and_no_request_hangs(several):
    before = engine(several)

    async def attack(client: httpx.AsyncClient) -> None:
        os.kill(before, signal.SIGKILL)
        answer = await ready(client, False)
        assert answer["reason"] in ("engine_away", "starting")
        await ready(client, True)

    outcomes = during_load(several, attack)
    assert set(outcomes) == {200, 503}, set(outcomes)
    assert engine(several) != before
    assert outcomes[-1] == 200


def test_an_engine_that_hangs_is_replaced(several):
    before = engine(several)

    async def attack(client: httpx.AsyncClient) -> None:
        os.kill(before, signal.SIGSTOP)
        while before in several.children():
            await asyncio.sleep(0.05)
        await ready(client, True)

    outcomes = during_load(several, attack)
    assert set(outcomes) <= {200, 503}, set(outcomes)


def test_workers_do_not_outlive_a_killed_supervisor(tmp_path):
    server = start_server(tmp_path, demo="false", http_workers=1)
    wait_until_ready(server)
    left = server.children()
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 60
    while any(alive(p) for p in left):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.05)


def test_a_bad_start_is_refused_in_one_sentence(tmp_path):
    file = tmp_path / "afile"
    file.touch()
    for says, settings in {
        "found none": {"model": tmp_path / "nowhere"},
        "afile cannot hold collections: File exists": {"data_dir": file},
    }.items():
        server = start_server(tmp_path, http_workers=1, **settings)
        assert server.process.wait(60) == 1
        last = server.log.read_text().strip().splitlines()[-1]
        assert last.startswith("mexma-serve: ")
        assert says in last


def test_keys_quotas_and_the_record_are_kept_with_workers(tmp_path):
    reader, a = new_key("reader", "read")
    frugal, b = new_key("frugal", "read", tokens_per_minute=10)
    boss, c = new_key("boss", "admin")
    keys, record = tmp_path / "keys.json", tmp_path / "audit.log"
    write_keys(keys, [a, b, c])
    server = start_server(
        tmp_path,
        demo="false",
        http_workers=2,
        api_keys_file=keys,
        audit_log=record,
        access_log=True,
    )
    wait_until_ready(server)

    def ask(key: str | None, method: str = "POST", path: str = "/v1/embeddings") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"input": SENTENCES[0]} if method == "POST" else None
        return httpx.request(method, server.url + path, json=body, headers=headers, timeout=60)

    assert ask(None).status_code == 401
    assert ask("mexma_00000000_" + "x" * 43).status_code == 401
    assert ask(reader).status_code == 200
    assert ask(reader, "DELETE", "/v1/collections/none").status_code == 403
    assert 429 in [ask(frugal).status_code for _ in range(20)], "a quota is one, for all workers"
    assert ask(boss, "DELETE", "/v1/collections/none").status_code == 404
    assert '"boss"' in record.read_text()
    assert '"address":"127.0.0.1"' in record.read_text()
    behind = {"authorization": f"Bearer {boss}", "x-forwarded-for": "203.0.113.9"}
    httpx.delete(f"{server.url}/v1/collections/none", headers=behind, timeout=60)
    assert '"address":"203.0.113.9"' in record.read_text(), "a proxy on loopback is believed"
    answers = [ask(boss, "DELETE", "/v1/collections/none") for _ in range(12)]
    ids = [a.headers["x-request-id"] for a in answers]
    assert len(set(ids)) == len(ids), "no two workers give one id"
    while any(one not in server.log.read_text() for one in ids):  # written after the answer
        time.sleep(0.02)
    recorded, logged = record.read_text(), server.log.read_text()
    for one in ids:
        assert recorded.count(f'"request_id":"{one}"') >= 1
        assert logged.count(one) == 1, "an answer is logged once, where it was made"
    assert "health/live" not in logged, "the supervisor's questions are no requests"
    assert ask(None, "GET", "/v1/collections/private").status_code == 401
    while 'mexma_refused_total{reason="no_key"} 2.0' not in ask(boss, "GET", "/metrics").text:
        time.sleep(0.02)
    shown = ask(boss, "GET", "/metrics").text
    for route in ("/v1/embeddings", "/v1/collections/{name}"):
        assert f'mexma_http_requests_total{{route="{route}",status="401"}}' in shown
    assert 'route="unmatched"' not in shown
    server.process.terminate()
    assert server.process.wait(60) == 0

"""The default model in a real process, asked by real clients."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import numpy as np
import pytest
from openai import NotFoundError, OpenAI, UnprocessableEntityError

from mexma.neighbours import nearest
from mexma.sample import parallel_pairs, tatoeba_sample
from service.settings import DEFAULT_MODEL
from tests.conftest import Server, start_server, wait_until_ready

SENTENCES = [s.text for s in tatoeba_sample()]


@pytest.fixture(scope="module")
def official(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def embed(server: Server, texts: list[str], **fields) -> np.ndarray:
    response = httpx.post(
        f"{server.url}/v1/embeddings", json={"input": texts, **fields}, timeout=120
    )
    assert response.status_code == 200, response.text
    return np.array([d["embedding"] for d in response.json()["data"]], np.float32)


def test_the_official_client_gets_the_same_vectors_in_float_and_base64(official, server):
    texts = SENTENCES[:100:3]
    asked_for_floats = official.embeddings.create(
        input=texts, model="default", encoding_format="float"
    )
    by_default = official.embeddings.create(input=texts, model="default")  # base64 on the wire
    for a, b in zip(asked_for_floats.data, by_default.data, strict=True):
        np.testing.assert_array_equal(
            np.array(a.embedding, np.float32), np.array(b.embedding, np.float32)
        )
    np.testing.assert_array_equal(
        np.array([d.embedding for d in by_default.data], np.float32), embed(server, texts)
    )
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens > len(texts) * 3


def test_the_official_client_lists_and_retrieves_models(official):
    (listed,) = official.models.list().data
    assert official.models.retrieve(listed.id) == listed
    with pytest.raises(NotFoundError) as caught:
        official.models.retrieve("text-embedding-3-small")
    assert caught.value.code == "model_not_found"


def test_the_official_client_understands_our_errors(official):
    with pytest.raises(UnprocessableEntityError) as caught:
        official.embeddings.create(input=["fine", ""], model="default")
    assert "item 1 is an empty string" in caught.value.message
    assert caught.value.code == "empty_text"


def test_batched_equals_alone(server):
    texts = [*random.Random(0).sample(SENTENCES, 60), " ".join(SENTENCES[:200]), "a"]
    together = embed(server, texts)
    alone = np.vstack([embed(server, [text]) for text in texts])
    cosines = np.sum(together * alone, axis=1)
    assert cosines.min() >= 0.9999, texts[int(cosines.argmin())]
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("lang", ["fi", "ja", "ar", "hi", "vi"])
def test_sentences_find_their_translations(server, lang):
    """A floor far under the measured accuracy: this catches a broken model, not a worse one."""
    sources, english = parallel_pairs(lang)
    _, found = nearest(embed(server, sources), embed(server, english), 1)
    right = sum(english[i] == english[j] for i, (j,) in enumerate(found))
    assert right / len(sources) > 0.8


def test_the_demo_answers_across_languages(server):
    described = httpx.get(f"{server.url}/v1/collections/demo").json()
    assert described["count"] == len(SENTENCES)
    assert len(described["languages"]) >= 25
    query = next(s for s in tatoeba_sample() if s.lang == "ja")
    response = httpx.post(
        f"{server.url}/v1/collections/demo/search",
        json={
            "queries": [query.text],
            "k": 1,
            "per_language": True,
            "exclude_query_language": True,
        },
    ).json()
    assert response["query_languages"] == ["ja"]
    hits = {hit["lang"]: hit for hit in response["results"][0]}
    assert len(hits) == len(described["languages"]) - 1
    assert hits["en"]["metadata"]["group"] == query.group


def test_a_storm_of_mixed_requests(server):
    """200 at once, a third cancelled, some bad: survivors are right, the bad are told, and
    after four more storms the process is no larger than after the first."""
    rng = random.Random(1)
    texts = rng.sample(SENTENCES, 40)
    long_text = (" ".join(SENTENCES) * 2)[:10_000]
    expected = dict(zip([*texts, long_text], embed(server, [*texts, long_text]), strict=True))
    kinds = ["good"] * 140 + ["empty"] * 20 + ["long"] * 20 + ["not utf-8"] * 20

    async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
        """A client that comes back when it is told to: a slow machine cannot take all of it at once."""
        while True:
            response = await client.post("/v1/embeddings", **body)
            if response.status_code != 503:
                return response
            await asyncio.sleep(int(response.headers["retry-after-ms"]) / 1000)

    async def one(client: httpx.AsyncClient, kind: str) -> str:
        chosen = rng.choices(texts, k=rng.randint(1, 20))
        if kind == "not utf-8":
            response = await post(
                client,
                content='{"input": "café"}'.encode("latin-1"),
                headers={"content-type": "application/json"},
            )
            assert response.status_code == 400
            assert "not UTF-8: byte 0xe9 at offset 14" in response.text
            return kind
        bad = rng.randrange(len(chosen))
        if kind == "empty":
            chosen[bad] = ""
        if kind == "long":
            chosen[bad] = long_text
        refuse = kind == "long" and rng.random() < 0.5
        response = await post(client, json={"input": chosen, "truncate": not refuse})
        if kind == "empty" or refuse:
            assert response.status_code == 422
            error = response.json()["error"]
            assert error["item"] == bad
            assert f"item {bad} " in error["message"]
            assert not refuse or error["limit"] == 512
            return kind
        assert response.status_code == 200, response.text
        for i, item in enumerate(response.json()["data"]):
            cosine = float(np.array(item["embedding"], np.float32) @ expected[chosen[i]])
            assert cosine >= 0.9999
            assert (item.get("truncation", {}).get("tokens_used") == 512) == (
                chosen[i] == long_text
            )
        return kind

    async def storm() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            order = rng.sample(kinds, len(kinds))
            tasks = [asyncio.create_task(one(client, kind)) for kind in order]
            doomed = set(rng.sample(range(200), 67))
            for i in sorted(doomed):
                await asyncio.sleep(rng.random() * 0.01)
                tasks[i].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for i, (kind, outcome) in enumerate(zip(order, outcomes, strict=True)):
                if isinstance(outcome, asyncio.CancelledError):
                    assert i in doomed
                else:
                    assert outcome == kind, repr(outcome)

    asyncio.run(storm())
    asyncio.run(storm())
    before = server.rss_bytes()
    for _ in range(3):
        asyncio.run(storm())
    while "mexma_queue_items 0.0" not in httpx.get(f"{server.url}/metrics").text:
        time.sleep(0.05)  # a cancelled request that stayed in the queue would hang here
    assert 'status="499"' in httpx.get(f"{server.url}/metrics").text, "no disconnect was noticed"
    grown = server.rss_bytes() - before
    assert grown < 0.05 * before, f"grew by {grown / 2**20:.0f} MiB from {before / 2**20:.0f}"
    assert httpx.get(f"{server.url}/health/ready").status_code == 200


def test_restart_keeps_collections_and_is_quick_to_ready(tmp_path):
    first = start_server(tmp_path, demo="false")
    wait_until_ready(first)
    httpx.put(f"{first.url}/v1/collections/kept").raise_for_status()
    documents = [{"id": str(i), "text": text} for i, text in enumerate(SENTENCES[:50])]
    stored = httpx.post(
        f"{first.url}/v1/collections/kept/documents", json={"documents": documents}, timeout=60
    )
    assert stored.json()["created"] == 50
    query = {"queries": [SENTENCES[3]], "k": 5}
    before = httpx.post(f"{first.url}/v1/collections/kept/search", json=query).json()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    second = start_server(tmp_path, demo="false")
    wait_until_ready(second)
    assert httpx.post(f"{second.url}/v1/collections/kept/search", json=query).json() == before
    second.process.terminate()
    assert second.process.wait(30) == 0


@pytest.mark.parametrize("http_workers", [0, 2])
def test_sigterm_finishes_what_was_accepted(tmp_path, http_workers):
    server = start_server(tmp_path, demo="false", http_workers=http_workers, log_format="json")
    wait_until_ready(server)

    long = [" ".join([text] * 5) for text in SENTENCES[:500]]  # under way for a second

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(
                client.post(f"{server.url}/v1/embeddings", json={"input": long})
            )
            while "mexma_queue_items 0.0" in (await client.get(f"{server.url}/metrics")).text:
                await asyncio.sleep(0.005)
            server.process.terminate()
            return await asked

    response = asyncio.run(main())
    assert response.status_code == 200
    assert len(response.json()["data"]) == 500
    assert server.process.wait(60) == 0
    begun, ended = drained(server)
    processes = 1 + http_workers  # the engine's is asked over shared memory, not by a request
    assert sorted(line["requests_under_way"] for line in begun) == [0] * http_workers + [1]
    assert {line["signal"] for line in begun} == {"SIGTERM"}
    assert [line["requests_cut"] for line in ended] == [0] * processes
    assert all(line["seconds"] >= 0 for line in ended)


@pytest.mark.parametrize(
    ("number", "http_workers", "status"),
    [(signal.SIGTERM, 2, 0), (signal.SIGINT, 2, 0), (signal.SIGINT, 0, 130)],
)
def test_so_does_a_signal_to_all_its_processes(tmp_path, number, http_workers, status):
    """As from a terminal, or from systemd. Whoever comes meanwhile is refused, and does not wait."""
    server = start_server(tmp_path, demo="false", http_workers=http_workers, own_group=True)
    wait_until_ready(server)
    long = [" ".join([text] * 5) for text in SENTENCES[:700]]

    async def main() -> tuple[httpx.Response, bool]:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(
                client.post(f"{server.url}/v1/embeddings", json={"input": long})
            )
            while "mexma_queue_items 0.0" in (await client.get(f"{server.url}/metrics")).text:
                await asyncio.sleep(0.005)
            os.killpg(server.process.pid, number)
            refused = False
            while not (asked.done() or refused):
                try:
                    async with httpx.AsyncClient(timeout=30) as other:
                        await other.get(f"{server.url}/health/live")
                except httpx.ConnectError:
                    refused = True
                except (httpx.ReadError, httpx.RemoteProtocolError):  # accepted a moment before
                    pass
                await asyncio.sleep(0.01)
            return await asked, refused

    response, refused = asyncio.run(main())
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 700
    assert refused, "a connection waited for the end"
    assert server.process.wait(60) == status
    assert "Traceback" not in server.log.read_text()


def drained(server: Server) -> tuple[list[dict], list[dict]]:
    """What the log says where draining begins, and where it has ended."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line[0] == "{"]
    begun = [line for line in lines if line["message"] == "draining begins"]
    return begun, [line for line in lines if line["message"].startswith("draining ended")]


def test_the_log_says_what_draining_cut(tmp_path):
    """A client that has sent half a request, and nothing more for as long as there is."""
    brief = "import service.__main__ as it; it.GRACE_S = 1; it.main([])"
    server = start_server(tmp_path, script=brief, demo="false", log_format="json")
    wait_until_ready(server)
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as half:
        half.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        httpx.get(f"{server.url}/health/live").raise_for_status()
        server.process.terminate()
        server.process.wait(60)
    [begun], [ended] = drained(server)
    assert (begun["requests_under_way"], ended["requests_cut"]) == (1, 1)
    assert ended["level"] == "warning"


def test_sigterm_turns_ready_off_and_serves_on_while_load_balancers_notice(tmp_path):
    server = start_server(tmp_path, demo="false", drain_delay_s=3600)
    wait_until_ready(server)
    server.process.terminate()
    while (answer := httpx.get(f"{server.url}/health/ready")).status_code == 200:
        time.sleep(0.02)
    assert answer.json()["reason"] == "draining"
    assert "draining" in httpx.get(f"{server.url}/health").json()["error"]
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    assert embed(server, ["still here"]).shape == (1, 384)
    server.process.terminate()  # a second one ends the wait
    assert server.process.wait(60) == 0


def test_workers_drain_alike(tmp_path):
    server = start_server(tmp_path, demo="false", drain_delay_s=15, http_workers=1)
    wait_until_ready(server)
    server.process.terminate()
    while (answer := httpx.get(f"{server.url}/health/ready")).status_code == 200:
        time.sleep(0.02)
    assert answer.json()["reason"] == "draining"
    assert embed(server, ["still here"]).shape == (1, 384)
    assert server.process.wait(60) == 0


def run_serve(folder, **settings) -> subprocess.CompletedProcess:
    server = start_server(folder, **settings)
    server.process.wait(60)
    return subprocess.CompletedProcess([], server.process.returncode, server.log.read_text())


def test_bad_starts_are_refused_in_one_sentence(tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(DEFAULT_MODEL, broken)
    with (broken / "tokenizer.json").open("r+b") as file:
        file.truncate(1000)
    file = tmp_path / "afile"
    file.touch()
    taken = socket.create_server(("127.0.0.1", 0))
    cases = {
        "(truncated?)": {"model": broken},
        "found none": {"model": tmp_path / "nowhere"},
        "device cuda was asked for": {"device": "cuda"},
        "MEXMA_MAX_BACTH_TOKENS is not a setting": {"max_bacth_tokens": 5},
        "MEXMA_PORT": {"port": "http"},
        "cannot listen on 127.0.0.1 port": {"port": taken.getsockname()[1]},
        "afile cannot hold collections: File exists": {"data_dir": file},
        "nowhere is no directory": {"models_dir": tmp_path / "nowhere"},
    }
    for says, settings in cases.items():
        outcome = run_serve(tmp_path, **settings)
        last = outcome.stdout.strip().splitlines()[-1]
        assert outcome.returncode == 1, outcome.stdout
        assert last.startswith("mexma-serve: "), outcome.stdout
        assert says in last
        assert "Traceback" not in outcome.stdout
    taken.close()


def test_the_second_of_two_services_on_one_folder_is_refused(tmp_path):
    first = start_server(tmp_path, demo="false")
    wait_until_ready(first)
    outcome = run_serve(tmp_path, demo="false")
    assert outcome.returncode == 1
    assert "Traceback" not in outcome.stdout.splitlines()[-1]
    first.process.terminate()
    assert first.process.wait(30) == 0


def test_help_lists_the_settings():
    shown = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "MEXMA_MAX_BATCH_TOKENS=" in shown

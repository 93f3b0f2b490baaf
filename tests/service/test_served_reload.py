"""Models exchanged under real traffic: real processes, real encoders, real clients."""

from __future__ import annotations

import asyncio
import base64
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from mexma.encoder import OnnxEncoder, encode
from mexma.errors import ArtifactError
from mexma.sample import tatoeba_sample
from tests.conftest import start_server, wait_until_ready
from tests.tiny import tiny_artifact

TEXTS = list(dict.fromkeys(s.text for s in tatoeba_sample()))[:200]
CLIENTS = 6
RELOADS = 8


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """Two encoders of one shape and name that have nothing to do with each other."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "other")):
        tiny_artifact(root / name, seed=seed, name="tiny", sentences_per_language=1)
    return root


@pytest.fixture(scope="module")
def expected(artifacts) -> dict[str, np.ndarray]:
    """Fingerprint -> vectors of TEXTS, computed outside any service."""
    encoders = [OnnxEncoder(artifacts / name, threads=1) for name in ("one", "other")]
    found = {e.fingerprint: encode(e, TEXTS) for e in encoders}
    one, other = found.values()
    assert np.abs(np.sum(one * other, axis=1)).max() < 0.9, "they could be taken for each other"
    return found


class Traffic:
    """Clients that ask, one after the other, in every way there is, and judge each answer."""

    def __init__(self, url: str, expected: dict[str, np.ndarray], *, searches: bool = True):
        self.url, self.expected = url, expected
        self.asks = [self.openai, self.base64, self.tei, *([self.search] if searches else [])]
        self.over = asyncio.Event()
        self.answers: Counter[str] = Counter()  # by fingerprint
        self.problems: list[str] = []

    async def run(self, seed: int) -> None:
        choose = random.Random(seed)
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            while not self.over.is_set():
                rows = choose.sample(range(len(TEXTS)), choose.choice((1, 2, 40)))
                try:
                    await choose.choice(self.asks)(client, rows)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed request
                    self.problems.append(f"{type(error).__name__}: {error}")

    def judge(self, response: httpx.Response, rows: list[int], vectors) -> None:
        fingerprint = response.headers["x-encoder-fingerprint"]
        cosines = np.sum(np.array(vectors, np.float32) * self.expected[fingerprint][rows], axis=1)
        if not cosines.min() >= 0.9999:
            self.problems.append(f"not a vector of {fingerprint}: {cosines.min()}")
        self.answers[fingerprint] += 1

    async def post(self, client: httpx.AsyncClient, path: str, json: dict) -> httpx.Response:
        response = await client.post(path, json=json)
        assert response.status_code == 200, response.text
        return response

    async def openai(self, client: httpx.AsyncClient, rows: list[int]) -> None:
        body = {"model": "tiny", "input": [TEXTS[i] for i in rows]}
        response = await self.post(client, "/v1/embeddings", body)
        self.judge(response, rows, [d["embedding"] for d in response.json()["data"]])

    async def base64(self, client: httpx.AsyncClient, rows: list[int]) -> None:
        body = {"input": [TEXTS[i] for i in rows], "encoding_format": "base64"}
        response = await self.post(client, "/v1/embeddings", body)
        raw = [base64.b64decode(d["embedding"]) for d in response.json()["data"]]
        self.judge(response, rows, [np.frombuffer(r, "<f4") for r in raw])

    async def tei(self, client: httpx.AsyncClient, rows: list[int]) -> None:
        response = await self.post(client, "/embed", {"inputs": [TEXTS[i] for i in rows]})
        self.judge(response, rows, response.json())

    async def search(self, client: httpx.AsyncClient, rows: list[int]) -> None:
        """The collection belongs to one of the two all the time, whichever answers the others."""
        body = {"queries": [TEXTS[i] for i in rows], "k": 1}
        found = (await self.post(client, "/v1/collections/notes/search", body)).json()
        hits = [hits[0] for hits in found["results"]]
        if [hit["text"] for hit in hits] != [TEXTS[i] for i in rows] or any(
            hit["cosine"] < 0.9999 for hit in hits
        ):
            self.problems.append("a search found something else")
        self.answers["search"] += 1


async def reload(client: httpx.AsyncClient, model: str, expected: str) -> None:
    response = await client.post("/v1/models/reload", json={"model": model})
    assert response.status_code == 200, response.text
    assert response.json()["fingerprint"] == expected


def test_models_change_places_under_traffic_and_not_one_request_fails(
    tmp_path, artifacts, expected
):
    server = start_server(
        tmp_path,
        model=artifacts / "one",
        models_dir=artifacts,
        demo="false",
        threads=1,
        cache_mb=8,
        reload_max_loss=1,
        reload_keep_s=0,
        reload_trial_s=0,
    )
    wait_until_ready(server)
    one, other = expected

    async def main() -> Traffic:
        traffic = Traffic(server.url, expected)
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as admin:
            (await admin.put("/v1/collections/notes")).raise_for_status()
            documents = [{"id": str(i), "text": t, "lang": "und"} for i, t in enumerate(TEXTS)]
            put = await admin.post("/v1/collections/notes/documents", json={"documents": documents})
            put.raise_for_status()
            clients = [asyncio.create_task(traffic.run(seed)) for seed in range(CLIENTS)]
            for i in range(RELOADS):
                model, fingerprint = (("other", other), ("one", one))[i % 2]
                if i == 5:
                    back = await admin.post("/v1/models/rollback", json={})
                    assert back.json()["fingerprint"] == one, back.text
                else:
                    await reload(admin, model, fingerprint)
                before = traffic.answers[fingerprint]
                while traffic.answers[fingerprint] < before + 10:  # each has its time
                    await asyncio.sleep(0.01)
                    assert not traffic.problems, traffic.problems[:3]
            traffic.over.set()
            await asyncio.gather(*clients)
        return traffic

    traffic = asyncio.run(main())
    server.process.terminate()
    assert server.process.wait(60) == 0, server.log.read_text()
    assert traffic.problems == []
    assert min(traffic.answers[k] for k in (one, other, "search")) >= 40, traffic.answers
    log = server.log.read_text()
    # "other" owns no collection: it was loaded, let go and unloaded again and again
    assert log.count(f"{other} is not loaded any more") >= RELOADS // 2 - 1, log
    assert "Traceback" not in log
    assert not any(text in log for text in TEXTS if len(text) > 20)


def test_a_damaged_artifact_is_refused_under_traffic(tmp_path, artifacts, expected):
    models = tmp_path / "models"
    for name in ("one", "other"):
        shutil.copytree(artifacts / name, models / name)
    with (models / "other/model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    server = start_server(tmp_path, model=models / "one", models_dir=models, demo="false")
    wait_until_ready(server)
    one, _ = expected

    async def main() -> Traffic:
        traffic = Traffic(server.url, expected, searches=False)
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as admin:
            clients = [asyncio.create_task(traffic.run(seed)) for seed in range(3)]
            for _ in range(3):
                before = traffic.answers[one]
                refused = await admin.post("/v1/models/reload", json={"model": "other"})
                assert refused.status_code == 422
                assert re.search(r"other/model\.onnx: expected SHA-256", refused.text)
                while traffic.answers[one] < before + 10 and not traffic.problems:
                    await asyncio.sleep(0.01)
            traffic.over.set()
            await asyncio.gather(*clients)
        return traffic

    traffic = asyncio.run(main())
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert traffic.problems == []
    assert set(traffic.answers) == {one}


def test_a_model_is_not_renewed_from_another_artifact_in_its_place(tmp_path, artifacts, expected):
    """The watchdog loads a model again that errs; by then a newer one may lie in its directory."""
    place = tmp_path / "model"
    shutil.copytree(artifacts / "one", place)
    encoder = OnnxEncoder(place, threads=1)
    encoder.renew()
    shutil.rmtree(place)
    shutil.copytree(artifacts / "other", place)
    with pytest.raises(ArtifactError, match=encoder.fingerprint):
        encoder.renew()
    np.testing.assert_allclose(encode(encoder, TEXTS), expected[encoder.fingerprint], atol=1e-5)

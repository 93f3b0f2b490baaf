"""A running service, asked over HTTP as any client would ask it."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from evaluation.retrieval import Float
from evaluation.subject import WordStates, unit_vectors
from mexma.errors import EngineError, FingerprintMismatch, InputError

TEXTS_PER_REQUEST = 64
CLIENTS = 4
TIMEOUT_S = 120.0
ATTEMPTS = 20
LONGEST_PAUSE_S = 10.0
FINGERPRINT = "x-encoder-fingerprint"
KEY = "MEXMA_API_KEY"
"""Environment variable with the key for a service that asks for one."""


class ServiceSubject:
    """`POST /v1/embeddings` in base64.

    Requests that find the service full (503) are sent again when it says so. Every answer's
    fingerprint must be that of the first, or numbers of two encoders would mix. Servers without
    our header have the fingerprint None. Sends the key in `MEXMA_API_KEY`, where there is one.
    """

    def __init__(self, url: str, *, model: str | None = None, client: httpx.Client | None = None):
        """url: of the service, also with the `/v1` that OpenAI's clients want. model: of several that it
        serves. client: to send with; a new one by default.

        Asks for one vector, so that a wrong URL fails here. Raises EngineError when the service does not
        answer, InputError when another model does, FingerprintMismatch as said above.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model = model or "mexma"
        self._client = client or httpx.Client(timeout=TIMEOUT_S)
        if key := os.environ.get(KEY):
            self._client.headers["authorization"] = f"Bearer {key}"
        self._fingerprint: str | None = None
        self.truncated = 0
        headers, body = self._post(["?"])
        self._fingerprint = headers.get(FINGERPRINT)
        if model not in (None, body.get("model"), self._fingerprint):
            raise InputError(
                f"{self.url}: serves no model {model!r}; {body.get('model')!r} answered in its place"
            )
        dim = len(base64.b64decode(body["data"][0]["embedding"])) // 4
        self.about: dict[str, Any] = {
            "kind": "service",
            "name": body.get("model"),
            "fingerprint": self._fingerprint,
            "dim": dim,
            "url": self.url,
        }

    @property
    def has_token_states(self) -> bool:
        return False

    def token_states(self, sentences: Sequence[Sequence[str]]) -> list[WordStates]:
        raise InputError(f"{self.url}: a service gives no token states; evaluate its artifact")

    def vectors(self, texts: Sequence[str]) -> Float:
        """Unit vectors float32 `[n, dim]`, in order of `texts`."""
        out = np.empty((len(texts), self.about["dim"]), np.float32)
        # Texts of like length go together, since the service batches what arrives together.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = [order[i : i + TEXTS_PER_REQUEST] for i in range(0, len(order), TEXTS_PER_REQUEST)]
        with (
            ThreadPoolExecutor(CLIENTS) as clients,
            tqdm(total=len(texts), desc=self.url, unit="text", disable=None, leave=False) as bar,
        ):
            answers = clients.map(lambda part: list(self._embed([texts[i] for i in part])), parts)
            for part, answer in zip(parts, answers, strict=True):
                for i, vector, cut in zip(part, *zip(*answer, strict=True), strict=True):
                    out[i] = vector
                    self.truncated += cut
                bar.update(len(part))
        return unit_vectors(out, texts)

    def _embed(self, texts: list[str]) -> Iterator[tuple[Float, bool]]:
        """Each text's vector float32 `[dim]`, and whether the text was cut."""
        headers, body = self._post(texts)
        found = headers.get(FINGERPRINT)
        if found != self._fingerprint:
            raise FingerprintMismatch(
                f"{self.url}: vectors of encoder {found} came after those of "
                f"{self._fingerprint}; the service was changed during the evaluation",
                expected=str(self._fingerprint),
                found=str(found),
            )
        data = sorted(body["data"], key=lambda item: int(item["index"]))
        if len(data) != len(texts):
            raise EngineError(f"{self.url}: expected {len(texts)} vectors, got {len(data)}")
        for item in data:
            vector = np.frombuffer(base64.b64decode(item["embedding"]), "<f4").astype(np.float32)
            if len(vector) != self.about["dim"]:
                raise EngineError(
                    f"{self.url}: expected vectors of {self.about['dim']} components, got one of "
                    f"{len(vector)}"
                )
            yield vector, item.get("truncation") is not None

    def _post(self, texts: list[str]) -> tuple[httpx.Headers, dict[str, Any]]:
        request = {"input": texts, "model": self._model, "encoding_format": "base64"}
        for _ in range(ATTEMPTS):
            try:
                answer = self._client.post(f"{self.url}/v1/embeddings", json=request)
            except httpx.HTTPError as error:
                raise EngineError(
                    f"{self.url}: expected a service, but {type(error).__name__}: {error}"
                ) from None
            if answer.status_code != 503:
                break
            pause = answer.headers.get("retry-after", "1")
            time.sleep(min(float(pause) if pause.isdigit() else 1.0, LONGEST_PAUSE_S))
        if answer.status_code != 200:
            raise EngineError(
                f"{self.url}: expected 200, got {answer.status_code}: {answer.text[:300]}"
            )
        try:
            body = answer.json()
            body["data"][0]["embedding"] + ""
        except (ValueError, KeyError, IndexError, TypeError):
            raise EngineError(
                f"{self.url}: expected embeddings in base64, got {answer.text[:100]!r}"
            ) from None
        return answer.headers, body

"""Is what comes out of HTTP as good as the torch checkpoint it was exported from?

    python -m benchmarks.served_accuracy CHECKPOINT TATOEBA.parquet [--languages fin jpn ...]

Starts `mexma-serve` with the default model, embeds Tatoeba's pairs through `/v1/embeddings` (32 texts
a request, eight requests at once) and in this process with torch in fp32, and compares top-1 accuracy
in both directions and the vectors themselves; then every text of one language alone against batched.
The test set is for reporting: nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from benchmarks.circumstances import circumstances, result_file
from mexma.batching import split_batches
from mexma.neighbours import nearest
from mexma.text import TextTokenizer, TokenBatch
from tests.conftest import start_server, wait_until_ready
from training.checkpoint import Checkpoint, load_checkpoint


def with_torch(checkpoint: Checkpoint, texts: list[str]) -> np.ndarray:
    """Vectors float32 `[n, dim]` by torch in fp32."""
    tokenizer = TextTokenizer(
        checkpoint.tokenizer_json, max_tokens=checkpoint.max_tokens, prefix=checkpoint.prefix
    )
    sequences = [t.ids for t in tokenizer.encode(texts)]
    out = np.empty((len(texts), checkpoint.encoder.config.dim), np.float32)
    batches = split_batches([len(s) for s in sequences], max_tokens=2048, max_items=64)
    with torch.inference_mode():
        for batch in batches:
            padded = TokenBatch.pad([sequences[i] for i in batch], checkpoint.encoder.config.pad_id)
            ids, mask = torch.from_numpy(padded.ids), torch.from_numpy(padded.mask)
            out[batch] = checkpoint.encoder(ids, mask).numpy()
    return out


def over_http(url: str, texts: list[str], size: int = 32) -> np.ndarray:
    """Vectors float32 `[n, dim]` by the service, `size` texts a request."""

    def one(start: int) -> np.ndarray:
        body = {"input": texts[start : start + size], "encoding_format": "base64"}
        data = httpx.post(f"{url}/v1/embeddings", json=body, timeout=120).json()["data"]
        return np.stack([np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in data])

    with ThreadPoolExecutor(8) as clients:
        return np.vstack([*clients.map(one, range(0, len(texts), size))])


def accuracy(queries: np.ndarray, targets: np.ndarray, texts: list[str]) -> float:
    """Per cent of queries whose nearest target has the right text."""
    _, found = nearest(queries, targets, 1)
    return 100 * float(np.mean([texts[i] == texts[j] for i, (j,) in enumerate(found)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("tatoeba", type=Path)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--languages", nargs="+", default=["fin", "jpn", "ara", "hin", "swh"])
    arguments = parser.parse_args()
    rows = pq.read_table(arguments.tatoeba).to_pylist()
    checkpoint = load_checkpoint(arguments.checkpoint, pooling=arguments.pooling)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder), demo="false")
        wait_until_ready(server)
        for lang in tqdm(arguments.languages):
            pairs = [(r["src"], r["trg"]) for r in rows if r["lang"] == lang]
            source, english = [s for s, _ in pairs], [t for _, t in pairs]
            torch_s, torch_e = with_torch(checkpoint, source), with_torch(checkpoint, english)
            http_s, http_e = over_http(server.url, source), over_http(server.url, english)
            alone = over_http(server.url, source[:200], size=1)
            cosines = np.concatenate([(torch_s * http_s).sum(1), (torch_e * http_e).sum(1)])
            numbers = [
                accuracy(torch_s, torch_e, english), accuracy(http_s, http_e, english),
                accuracy(torch_e, torch_s, source), accuracy(http_e, http_s, source),
            ]  # fmt: skip
            lines.append(
                f"| {lang} | {len(pairs)} | "
                + " | ".join(f"{n:.1f}" for n in numbers)
                + f" | {cosines.min():.7f} | {(alone * http_s[:200]).sum(1).min():.7f} |"
            )
        server.process.terminate()
        server.process.wait(30)
    report = f"""# Accuracy through HTTP

`python -m benchmarks.served_accuracy`. {circumstances("torch", "onnxruntime")}
Tatoeba, top-1 accuracy in per cent; lowest cosine of a vector over HTTP to torch fp32, and of a text sent
alone to the same text sent in a batch.

| language | pairs | to English: torch | HTTP | from English: torch | HTTP | cosine to torch | alone to batched |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}
"""
    result_file("served_accuracy").write_text(report)
    print(report)


if __name__ == "__main__":
    main()

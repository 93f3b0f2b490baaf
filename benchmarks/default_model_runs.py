"""Candidates for the default model, trained side by side on one GPU, averaged and judged.

    python -m benchmarks.default_model_runs --backbone BACKBONE --data CORPUS... \\
        --hold-out CORPUS... --decontaminate TEST_SET --out runs/default

First several settings with few pairs each, at the same time; then the best of them with more
pairs and several seeds, and with unmasking beside it. The runs' weights are averaged (Wortsman
et al. 2022, arXiv 2203.05482, uniform soup), with one another and with the start, and what finds
most held-out pairs, mean over the parts, is written to OUT/best. Pairs with held-out or test
sentences are left out once, before all runs (OUT/pairs.parquet). What was tried and found stands
in OUT/judged.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mexma.text import TextTokenizer
from training.centring import centred
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.corpus import Corpus, open_corpus
from training.recipe import override
from training.recipes import small
from training.sources import read_sources
from training.validation import choose_pairs, embed_texts, validate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Several runs share the memory of one GPU: hence recomputed layers.
COMMON = [
    "max_tokens=48", "recompute=true", "bucket_batches=32", "hold_out_fraction=0",
    "most_per_source=0", "centre_texts=0", "validate_every=1000000", "save_every=1000000", "keep_last=1",
]  # fmt: skip
FIRST = {
    "base": ["batch_pairs=1024", "learning_rate=2e-4"],
    "gentle": ["batch_pairs=1024", "learning_rate=7e-5"],
    "small-batch": ["batch_pairs=256", "learning_rate=1e-4"],
    "large-batch": ["batch_pairs=2048", "learning_rate=3e-4"],
    "warm": ["batch_pairs=1024", "learning_rate=2e-4", "temperature=0.05"],
}
UNMASKING = [
    "unmasking=0.1", "sampled_vocabulary=4096", "head_layers=2", "head_heads=6", "head_width=1536",
]  # fmt: skip
HELD_OUT_PAIRS = 2000

Weights = dict[str, torch.Tensor]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--backbone", required=True, help="Hugging Face directory or checkpoint")
    p.add_argument("--data", nargs="+", required=True, help="pairs to train on")
    p.add_argument("--hold-out", nargs="+", required=True, help="pairs to choose by")
    p.add_argument("--decontaminate", nargs="+", default=[], help="what training must not see")
    p.add_argument("--first-pairs", type=int, default=300_000, help="(%(default)s)")
    p.add_argument("--seeds", type=int, default=2, help="of the best (%(default)s)")
    p.add_argument("--seconds", type=float, default=120, help="for the second round (%(default)s)")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    data = clean_pairs(a.data, a.hold_out, a.decontaminate, a.out / "pairs.parquet")
    start = centred_start(a.backbone, data)
    save_checkpoint(a.out / "start", start)
    score = make_judge(a.hold_out, start)
    judged: dict[str, dict[str, float]] = {}

    def judge(name: str, weights: Weights) -> float:
        judged[name] = score(weights)
        print(f"{time.monotonic() - started:4.0f} s  {name}: {judged[name]}", flush=True)
        (a.out / "judged.json").write_text(json.dumps(judged, indent=1) + "\n")
        return judged[name]["mean"]

    def runs(settings: dict[str, list[str]]) -> dict[str, Weights]:
        common = [*COMMON, f"backbone={a.out / 'start'}", f"data={data}"]
        paths = {name: a.out / name for name in settings}
        train({paths[name]: [*common, *own] for name, own in settings.items()})
        return {name: read(path) for name, path in paths.items() if (path / "final").exists()}

    judge("start", start.encoder.state_dict())
    first_round = time.monotonic()
    found = runs({name: [*own, f"pairs={a.first_pairs}"] for name, own in FIRST.items()})
    speed = a.first_pairs * len(FIRST) / (time.monotonic() - first_round)
    scores = {name: judge(name, weights) for name, weights in found.items()}
    best = FIRST[max(scores, key=lambda name: scores[name])]
    # Unmasking costs about four times as much a pair, so it gets a fourth of the pairs.
    pairs = int(speed * a.seconds / (a.seeds + 1))
    second = {
        f"long-{seed}": [*best, f"pairs={pairs}", f"seed={seed}"] for seed in range(1, a.seeds + 1)
    }
    second["unmasking"] = [*best, *UNMASKING, f"pairs={pairs // 4}"]
    print(f"{speed:.0f} pairs/s together; {pairs} pairs of {' '.join(best)}", flush=True)
    found |= runs(second)
    candidates = {name: found[name] for name in second if name in found}
    scores = {name: judge(name, weights) for name, weights in candidates.items()}
    longs = [w for name, w in candidates.items() if name != "unmasking"]
    mixes = {"long": longs, "all": list(candidates.values()), "everything": list(found.values())}
    for name, several in mixes.items():
        if len(several) > 1:
            candidates[name] = mean(several)
            scores[name] = judge(f"mean of {name}", candidates[name])
    first = max(scores, key=lambda name: scores[name])
    for weight in (0.1, 0.2, 0.3):
        name = f"{first}, {weight} start"
        candidates[name] = mean(
            [candidates[first], start.encoder.state_dict()], [1 - weight, weight]
        )
        scores[name] = judge(name, candidates[name])
    chosen = max(scores, key=lambda name: scores[name])
    start.encoder.load_state_dict(candidates[chosen])
    save_checkpoint(a.out / "best", start)
    print(f"{time.monotonic() - started:4.0f} s  chosen: {chosen}", flush=True)


def clean_pairs(
    data: Sequence[str], hold_out: Sequence[str], decontaminate: Sequence[str], file: Path
) -> Path:
    """Write what may be trained on, at most 2,500 pairs of a language from one source."""
    settings = {
        "data": data, "hold_out": hold_out, "decontaminate": decontaminate,
        "most_per_source": ["2500"], "hold_out_fraction": ["0"],
    }  # fmt: skip
    recipe = override(small(), [f"{k}={','.join(v)}" for k, v in settings.items() if v])
    kept = open_corpus(recipe).train
    names = pa.array(kept.names).take(pa.array(kept.languages))
    pq.write_table(pa.table({"lang": names, "src": kept.sources, "trg": kept.targets}), file)
    print(f"{len(kept)} pairs in {len(kept.names)} languages", flush=True)
    return file


def centred_start(backbone: str, data: Path) -> Checkpoint:
    """The backbone with the mean of 4,000 training texts taken out."""
    start = load_checkpoint(backbone, pooling="mean", prefix="")
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=min(64, start.max_tokens))
    table = pq.read_table(data)
    rows = np.random.default_rng(0).choice(len(table), 2000)
    texts = [t for side in ("src", "trg") for t in table[side].take(rows).to_pylist()]
    return centred(start, tokenizer, texts)


def make_judge(
    hold_out: Sequence[str], start: Checkpoint, pairs: int = HELD_OUT_PAIRS
) -> Callable[[Weights], dict[str, float]]:
    """Weights to the share of held-out pairs found, in percent, by part and as their mean."""
    sources = read_sources(hold_out, ("src", "trg", "lang"))
    parts = choose_pairs({s.name: Corpus.of(s.table) for s in sources}, pairs=pairs)
    tokenizer = TextTokenizer(start.tokenizer_json, max_tokens=min(128, start.max_tokens))
    encoder = type(start.encoder)(start.encoder.config).to(DEVICE).eval()

    def embed(texts: list[str]) -> np.ndarray:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return embed_texts(encoder, tokenizer, texts)

    def score(weights: Weights) -> dict[str, float]:
        encoder.load_state_dict(weights)
        found = {s.name: round(50 * sum(s.mean), 2) for s in validate(parts, embed)}
        return found | {"mean": round(sum(found.values()) / len(found), 3)}

    return score


def train(runs: dict[Path, list[str]]) -> None:
    """All at once, each a process; one that was stopped goes on."""
    threads = str(max(1, (os.cpu_count() or 1) // len(runs)))
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    begun = []
    for out, settings in runs.items():
        what = ["resume"] if (out / "recipe.json").exists() else ["small", *settings]
        command = [sys.executable, "-m", "training", *what, "--out", str(out)]
        with open(f"{out}.log", "a") as log:  # noqa: PTH123
            begun.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    for process in begun:
        process.wait()


def read(run: Path) -> Weights:
    """The encoder's weights after a run."""
    return load_checkpoint(str(run / "final"), pooling="mean").encoder.state_dict()


def mean(several: Sequence[Weights], shares: Sequence[float] | None = None) -> Weights:
    shares = shares or [1 / len(several)] * len(several)
    return {
        name: sum(share * w[name] for share, w in zip(shares, several, strict=True))  # type: ignore[misc]
        for name in several[0]
    }


if __name__ == "__main__":
    main()

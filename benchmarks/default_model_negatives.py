"""The default model's last steps: trained further against negatives that are hard to tell apart, and judged.

    python -m benchmarks.default_model_negatives --start runs/default/best \\
        --data runs/default/pairs.parquet --hold-out CORPUS... --decontaminate TEST_SET --out runs/negatives
    python -m benchmarks.default_model_negatives --start runs/negatives/best --centred runs/default/start \\
        --data runs/default/pairs.parquet --hold-out CORPUS... --decontaminate TEST_SET --out runs/on-gpu

`mexma-train small` with seeds of their own; batches take groups of sentences that are alike (`alike=`), and
translations that say the same are no negatives (`same_above=`). The first command goes on from the weights
that `benchmarks.default_model_runs` chose and suits a CPU: a run of 147,000 pairs took less than half an hour of two
cores with AMX. The second makes three runs of 786,000 pairs at the same time, which took four minutes of
an H100: two from where the first ended, one of them in larger batches, and one from the centred backbone. The
runs' weights are averaged, with one another and with the start, and what finds most held-out pairs, mean
over the parts, is written to OUT/best; all scores to OUT/judged.json. What is there already is not trained
again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.default_model_runs import Weights, make_judge, mean, read
from benchmarks.default_model_runs import train as train_together
from training.checkpoint import load_checkpoint, save_checkpoint

COMMON = [
    "same_above=0.95", "centre_texts=0", "most_per_source=0", "hold_out_fraction=0",
    "validate_every=1000000", "save_every=192", "keep_last=1",
]  # fmt: skip
ON_CPU = [*COMMON, "alike=32", "bucket_batches=192", "batch_pairs=256", "learning_rate=1e-4"]
# Groups are found among 49,152 pairs in all of them.
ON_GPU = {
    "centred": ["alike=32", "bucket_batches=48", "batch_pairs=1024", "learning_rate=2e-4", "seed=1"],
    "start": ["alike=32", "bucket_batches=48", "batch_pairs=1024", "learning_rate=1e-4", "seed=11"],
    "larger": [
        "alike=64", "bucket_batches=24", "batch_pairs=2048", "learning_rate=2e-4", "seed=12",
        "recompute=true",
    ],
}  # fmt: skip
GPU_PAIRS = 786_432
SHARES_OF_START = (0.1, 0.25)
HELD_OUT_PAIRS = 1000


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--start", required=True, help="checkpoint to go on from")
    p.add_argument("--centred", help="the centred backbone: three runs at once, for a GPU")
    p.add_argument("--data", nargs="+", required=True, help="pairs to train on")
    p.add_argument("--hold-out", nargs="+", required=True, help="pairs to choose by")
    p.add_argument("--decontaminate", nargs="+", default=[], help="what training must not see")
    p.add_argument(
        "--pairs", type=int, nargs="+", default=[147_456, 98_304], help="of each run (%(default)s)"
    )
    p.add_argument(
        "--first-seed",
        type=int,
        default=1,
        help="others, to go on from such runs' mean (%(default)s)",
    )
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    start = load_checkpoint(a.start, pooling="mean", prefix="")
    score = make_judge(a.hold_out, start, HELD_OUT_PAIRS)
    judged: dict[str, dict[str, float]] = {}

    def judge(name: str, weights: Weights) -> float:
        judged[name] = score(weights)
        print(f"{name}: {judged[name]}", flush=True)
        (a.out / "judged.json").write_text(json.dumps(judged, indent=1) + "\n")
        return judged[name]["mean"]

    before = dict(start.encoder.state_dict())
    candidates = {"start": before}
    scores = {"start": judge("start", before)}
    runs = []
    lists = {"data": a.data, "hold_out": a.hold_out, "decontaminate": a.decontaminate}
    given = [f"{k}={','.join(v)}" for k, v in lists.items() if v]
    if a.centred:
        starts = {"centred": a.centred, "start": a.start, "larger": a.start}
        outs = {name: a.out / name for name in ON_GPU}
        train_together({
            out: [*COMMON, f"backbone={starts[name]}", *given, f"pairs={GPU_PAIRS}", *ON_GPU[name]]
            for name, out in outs.items() if not (out / "final").exists()
        })  # fmt: skip
    else:
        outs = {
            f"seed-{seed}": a.out / f"seed-{seed}"
            for seed in range(a.first_seed, a.first_seed + len(a.pairs))
        }
        for seed, pairs in enumerate(a.pairs, start=a.first_seed):
            own = [f"backbone={a.start}", *given, f"pairs={pairs}", f"seed={seed}"]
            train(outs[f"seed-{seed}"], [*ON_CPU, *own])
    for name, out in outs.items():
        runs.append(read(out))
        candidates[name] = runs[-1]
        scores[name] = judge(name, runs[-1])
    if len(runs) > 1:
        candidates["mean"] = mean(runs)
        scores["mean"] = judge("mean", candidates["mean"])
    first = max(scores, key=lambda name: scores[name])
    for share in SHARES_OF_START if first != "start" else ():
        name = f"{first}, {share} start"
        candidates[name] = mean([candidates[first], before], [1 - share, share])
        scores[name] = judge(name, candidates[name])
    chosen = max(scores, key=lambda name: scores[name])
    start.encoder.load_state_dict(candidates[chosen])
    save_checkpoint(a.out / "best", start)
    print("chosen:", chosen)


def train(out: Path, settings: list[str]) -> None:
    if (out / "final").exists():
        return
    what = ["resume"] if (out / "recipe.json").exists() else ["small", *settings]
    subprocess.run([sys.executable, "-m", "training", *what, "--out", str(out)], check=True)


if __name__ == "__main__":
    main()

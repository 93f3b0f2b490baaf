"""The default model's last step: trained further against negatives that are hard to tell apart, and judged.

    python -m benchmarks.default_model_negatives --start runs/default/best \\
        --data runs/default/pairs.parquet --hold-out CORPUS... --decontaminate TEST_SET --out runs/negatives

`mexma-train small` from the weights that `benchmarks.default_model_runs` chose, one run after the other, each
with a seed of its own; batches take groups of sentences that are alike (`alike=`), and translations that say
the same are no negatives (`same_above=`). It suits a CPU: a run of 147,000 pairs took less than half an hour of two
cores with AMX. The runs' weights are averaged, with one another and with the start, and what finds most held-out
pairs, mean over the parts, is written to OUT/best; all scores to OUT/judged.json. What is there already is
not trained again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.default_model_runs import Weights, make_judge, mean, read
from training.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = [
    "alike=32", "same_above=0.95", "bucket_batches=192", "batch_pairs=256", "learning_rate=1e-4",
    "centre_texts=0", "most_per_source=0", "hold_out_fraction=0", "validate_every=1000000",
    "save_every=192", "keep_last=1",
]  # fmt: skip
SHARES_OF_START = (0.1, 0.25)
HELD_OUT_PAIRS = 1000


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--start", required=True, help="checkpoint to go on from")
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
    for seed, pairs in enumerate(a.pairs, start=a.first_seed):
        out = a.out / f"seed-{seed}"
        train(out, [*SETTINGS, f"backbone={a.start}", *given, f"pairs={pairs}", f"seed={seed}"])
        runs.append(read(out))
        candidates[out.name] = runs[-1]
        scores[out.name] = judge(out.name, runs[-1])
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

"""The paper's ablation with its reviewers' controls: what do the token-level losses add?

    python -m benchmarks.objectives --backbone BACKBONE --data CORPUS... --hold-out CORPUS... \\
        --decontaminate TEST_SET --out runs/objectives

Seven recipes from one start, with the same pairs, three seeds each. They are judged by held-out
sources: how often the nearest sentence is the translation, in both directions, and xsim++ with
our own corruptions (its numbers compare with none published). Each family of objectives takes
the learning rate that did best of two with the first seed, by held-out pairs.

A run that is finished is not repeated, and one that was stopped goes on, so this can be killed at
any time. The weights of a run are removed once it is judged. A GPU is kept busy by `--workers`; a CPU
by one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.circumstances import circumstances, result_file
from evaluation.xsimpp import HardPool, hard_pool, xsimpp
from mexma.text import TextTokenizer
from training.checkpoint import load_checkpoint
from training.corpus import Corpus
from training.loop import train
from training.ranks import Ranks
from training.recipe import Recipe, override
from training.recipes import find_recipe
from training.sources import read_sources
from training.validation import HeldOut, choose_pairs, embed_texts, validate

FAMILIES = {
    "published": ["mexma_small", "sentence_gradient_only", "no_koleo", "monolingual_mlm"],
    "contrastive": ["contrastive"],
    "contrastive and unmasking": [
        "contrastive_unmasking",
        "contrastive_unmasking_no_token_gradient",
    ],
}
TITLES = {
    "start": "the start, untrained",
    "mexma_small": "full MEXMA",
    "sentence_gradient_only": "MEXMA, sentence gradient only",
    "no_koleo": "MEXMA without KoLeo",
    "monolingual_mlm": "alignment, KoLeo, monolingual MLM",
    "contrastive": "contrastive",
    "contrastive_unmasking": "contrastive, unmasking",
    "contrastive_unmasking_no_token_gradient": "contrastive, unmasking, no token gradients",
}
COMMON = [
    "centre_texts=4000", "max_tokens=64", "hold_out_fraction=0", "language_temperature=1",
    "most_per_source=2500", "validate_every=1000000", "save_every=1000000", "keep_last=1",
    "temperature=0.03",
]  # fmt: skip
HELD_OUT_PAIRS = 600
HARD_SENTENCES, HARD_LANGUAGES, HARD_PER_KIND = 100, 12, 2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Result = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """parts: held-out pairs. pool: English sentences with their corruptions. translations:
    language -> of the pool's sentences, in their order."""

    parts: list[HeldOut]
    pool: HardPool
    translations: dict[str, list[str]]

    def score(self, checkpoint: str) -> Result:
        """Percentages of a checkpoint, by its vectors from bfloat16 products."""
        loaded = load_checkpoint(checkpoint, pooling="mean", prefix="")
        encoder = loaded.encoder.to(DEVICE).eval()
        tokenizer = TextTokenizer(loaded.tokenizer_json, max_tokens=64)

        def embed(texts: list[str]) -> np.ndarray:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                return embed_texts(encoder, tokenizer, texts)

        found = validate(self.parts, embed)
        targets = embed(self.pool.texts)
        errors = [
            xsimpp(embed(texts), targets, self.pool).margin_percent
            for texts in self.translations.values()
        ]
        vectors = targets[: len(self.translations and next(iter(self.translations.values())))]
        cosines = vectors @ vectors.T
        n = len(vectors)
        return {
            "parts": {s.name: [100 * x for x in s.mean] for s in found},
            "found": 100 * float(np.mean([s.mean for s in found])),
            "xsim++": float(np.mean(errors)),
            "unrelated": float((cosines.sum() - np.trace(cosines)) / (n * (n - 1))),
        }


def make_judge(hold_out: list[str]) -> Judge:
    """The hard pool is of the first source: sentences with the most of the commonest languages."""
    sources = read_sources(hold_out, ("src", "trg", "lang"))
    parts = choose_pairs({s.name: Corpus.of(s.table) for s in sources}, pairs=HELD_OUT_PAIRS)
    known: dict[str, dict[str, str]] = defaultdict(dict)
    for row in sources[0].table.to_pylist():
        known[row["trg"]][row["lang"]] = row["src"]
    counts: dict[str, int] = defaultdict(int)
    for languages in known.values():
        for language in languages:
            counts[language] += 1
    common = sorted(counts, key=lambda x: (-counts[x], x))[:HARD_LANGUAGES]
    whole = sorted(t for t, languages in known.items() if all(c in languages for c in common))
    sentences = [t for t in whole if 30 <= len(t) <= 150]
    step = max(1, len(sentences) // HARD_SENTENCES)
    sentences = sentences[::step][:HARD_SENTENCES]
    pool = hard_pool(sentences, per_kind=HARD_PER_KIND)
    return Judge(parts, pool, {c: [known[t][c] for t in sentences] for c in common})


def run(recipe: Recipe, judge: Judge, out: Path) -> Result:
    """Train, or go on, and judge; or read what was found before."""
    done = out / "result.json"
    if done.exists():
        found: Result = json.loads(done.read_text())
        return found
    final = train(recipe, out, Ranks(0, 1, DEVICE), resume=out.exists(), quiet=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["kind"] == "step"]
    result = judge.score(str(final))
    result |= {"pairs_per_s": steps[-1]["pairs_per_s"], "learning_rate": recipe.learning_rate}
    done.write_text(json.dumps(result, indent=2) + "\n")
    for weights in ("final", "checkpoints", "best"):
        path = out / weights
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    return result


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--backbone", required=True, help="Hugging Face directory or checkpoint")
    p.add_argument("--data", nargs="+", required=True, help="pairs to train on")
    p.add_argument("--hold-out", nargs="+", required=True, help="pairs to judge by")
    p.add_argument("--decontaminate", nargs="+", default=[], help="what training must not see")
    p.add_argument("--pairs", type=int, default=2048, help="of every run (%(default)s)")
    p.add_argument("--seeds", type=int, default=3, help="of every recipe (%(default)s)")
    p.add_argument("--rates", type=float, nargs=2, default=[2e-5, 8e-5], help="(%(default)s)")
    p.add_argument("--set", nargs="+", default=[], help="settings of every run, key=value")
    p.add_argument("--workers", type=int, default=1, help="runs at a time (%(default)s)")
    p.add_argument("--out", type=Path, required=True, help="folder of the runs")
    a = p.parse_args()
    judge = make_judge(a.hold_out)
    forbidden = ",".join([*a.hold_out, *a.decontaminate])

    def recipe(name: str, seed: int, rate: float) -> Recipe:
        common = [x for x in COMMON if x.split("=")[0] not in {y.split("=")[0] for y in a.set}]
        return override(
            find_recipe(name),
            [*common, *a.set, f"backbone={a.backbone}", f"data={','.join(a.data)}", f"seed={seed}",
             f"decontaminate={forbidden}", f"pairs={a.pairs}", f"learning_rate={rate}"],
        )  # fmt: skip

    total = sum(len(names) * a.seeds + 1 for names in FAMILIES.values()) + 1
    # Each run in a process of its own: on a CPU the allocator keeps what one took from the next.
    pool = ProcessPoolExecutor(a.workers, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with pool, tqdm(total=total, unit="run") as bar:

        def begin(name: str, seed: int, rate: float) -> Future[Result]:
            out = a.out / f"{name}-{rate:g}-{seed}"
            begun = pool.submit(run, recipe(name, seed, rate), judge, out)
            begun.add_done_callback(lambda _: bar.update())
            return begun

        still = override(recipe("contrastive", 1, a.rates[0]), ["average_with_start=1", "pairs=64"])
        start = pool.submit(run, still, judge, a.out / "start")
        start.add_done_callback(lambda _: bar.update())
        firsts = [names[0] for names in FAMILIES.values()]
        tried = {name: [begin(name, 1, rate) for rate in a.rates] for name in firsts}
        rejected: list[tuple[str, Result]] = []
        begun: dict[tuple[str, int], Future[Result]] = {}
        for names in FAMILIES.values():
            best, other = sorted(tried[names[0]], key=lambda f: -f.result()["found"])
            rejected.append((names[0], other.result()))
            begun[names[0], 1] = best
            for name in names:
                for seed in range(1, a.seeds + 1):
                    if (name, seed) not in begun:
                        begun[name, seed] = begin(name, seed, best.result()["learning_rate"])
        results = {"start": [start.result()]}
        for (name, _), future in sorted(begun.items(), key=lambda x: x[0][1]):
            results.setdefault(name, []).append(future.result())
    results = {
        name: results[name] for name in ("start", *(n for f in FAMILIES.values() for n in f))
    }
    accelerator = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    file = result_file("objectives", accelerator)
    draw(file.with_suffix(".png"), results)
    file.write_text(
        written(a.pairs, results, rejected, judge, file.with_suffix(".png").name, accelerator)
    )
    print(file.read_text())


def spread(values: list[float], digits: int = 1) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def written(
    pairs: int,
    results: dict[str, list[Result]],
    rejected: list[tuple[str, Result]],
    judge: Judge,
    picture: str,
    accelerator: str,
) -> str:
    """The table, in Markdown."""
    parts = list(results["start"][0]["parts"])
    lines = [
        "# What the token-level losses add", "",
        f"{accelerator or 'CPU'}; {circumstances('torch')}", "",
        f"{pairs} pairs, the same for all, in steps of 64; {len(results['contrastive'])} seeds (mean ± "
        "standard deviation). Found: held-out pairs whose nearest sentence, by cosine, is the "
        "translation, in %, mean over languages of to and from English, ↑. xsim++: error in % against "
        f"{len(judge.pool.texts)} English sentences and corruptions, {len(judge.translations)} "
        "languages, ↓; own corruptions, so it compares with no published number. Unrelated: mean "
        "cosine of different English sentences.", "",
        "| | rate | found | " + " | ".join(parts) + " | xsim++ | unrelated | pairs/s |",
        "|---|---|---|" + "---|" * (len(parts) + 3),
    ]  # fmt: skip
    for name, rows in results.items():
        cells = [TITLES[name], "" if name == "start" else f"{rows[0]['learning_rate']:g}"]
        cells.append(spread([r["found"] for r in rows]))
        cells += [spread([statistics.fmean(r["parts"][part]) for r in rows]) for part in parts]
        cells += [spread([r["xsim++"] for r in rows]), spread([r["unrelated"] for r in rows], 2)]
        cells.append(
            "" if name == "start" else f"{statistics.median(r['pairs_per_s'] for r in rows):.0f}"
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"![found and xsim++]({picture})", ""]
    lines += [
        f"Other learning rate, first seed: {TITLES[name]} at {r['learning_rate']:g} found "
        f"{r['found']:.1f}, xsim++ {r['xsim++']:.1f}.  "
        for name, r in rejected
    ]
    return "\n".join(lines) + "\n"


def draw(file: Path, results: dict[str, list[Result]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(results)
    for axis, key, title in zip(
        axes, ("found", "xsim++"), ("held-out pairs found, % →", "← xsim++ error, %"), strict=True
    ):
        for place, name in enumerate(names):
            values = [r[key] for r in results[name]]
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            axis.plot(statistics.fmean(values), place, "|", color="black", markersize=16)
        axis.axvline(results["start"][0][key], color="grey", linewidth=0.8, linestyle=":")
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), [TITLES[n] for n in names])
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()

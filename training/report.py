"""What came out of a run: report.md with its curves and a chart of its languages, as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.recipe import Recipe
from training.runlog import read_rows

LOSSES = ("loss", "unmasking", "alignment", "koleo", "contrastive")
LANGUAGES_PER_ROW = 40


def write_report(path: Path, recipe: Recipe, progress: dict[str, Any]) -> Path:
    """Write report.md, losses.png and languages.png from metrics.jsonl; returns the report."""
    rows = read_rows(path)
    steps = [r for r in rows if r["kind"] == "step"]
    validations = [r for r in rows if r["kind"] == "validation"]
    lines = [f"# {recipe.name}", ""]
    if steps:
        _draw_losses(path / "losses.png", steps, validations)
        last = steps[-1]
        lines += ["![losses](losses.png)", "", "| | first step | last step |", "|---|---|---|"]
        lines += [f"| {n} | {steps[0][n]:.4f} | {last[n]:.4f} |" for n in LOSSES if n in last]
        lines += ["", f"{progress['step']} steps; {last['pairs_per_s']:.1f} pairs/s.", ""]
    if validations:
        lines += _languages(path, validations)
    notes = [f"- {r['text']}" for r in rows if r["kind"] == "note"]
    lines += ["## Notes", "", *notes, "", "## Recipe", "", "```json"]
    lines += [json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False), "```", ""]
    report = path / "report.md"
    report.write_text("\n".join(lines), encoding="utf-8")
    return report


def _languages(path: Path, validations: list[dict[str, Any]]) -> list[str]:
    lines = ["## Held-out pairs found, in %", ""]
    lines += ["| part | step | to English | from English |", "|---|---|---|---|"]
    for r in validations:
        shares = f"{100 * r['to_english']:.2f} | {100 * r['from_english']:.2f}"
        lines.append(f"| {r['part']} | {r['step']} | {shares} |")
    lines.append("")
    for number, part in enumerate(dict.fromkeys(r["part"] for r in validations)):
        of_part = [r for r in validations if r["part"] == part]
        picture = f"languages-{number}.png"
        _draw_languages(path / picture, part, of_part[0], of_part[-1])
        lines += [f"![{part}]({picture})", ""]
    return lines


def _draw_losses(file: Path, steps: list[dict[str, Any]], checks: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, needed once at the end

    names = [n for n in LOSSES if n in steps[-1]]
    panels = [*names, "rate", *(["found"] if checks else [])]
    figure = Figure(figsize=(9, 2.1 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    x = [r["step"] for r in steps]
    for axis, name in zip(axes, panels, strict=True):
        if name == "found":
            for part in dict.fromkeys(r["part"] for r in checks):
                mine = [r for r in checks if r["part"] == part]
                share = [50 * (r["to_english"] + r["from_english"]) for r in mine]
                axis.plot([r["step"] for r in mine], share, marker="o", label=part)
            axis.set_ylabel("held-out pairs\nfound, %")
            axis.legend(loc="upper left", bbox_to_anchor=(0, -0.25), ncols=3, fontsize="small")
        else:
            y = [r[name] for r in steps]
            axis.plot(x, y, linewidth=0.6, alpha=0.4, color="tab:blue")
            axis.plot(x, _smooth(y), linewidth=1.4, color="tab:blue")
            axis.set_ylabel("learning rate" if name == "rate" else name)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("optimiser step")
    figure.savefig(file, dpi=110)


def _smooth(values: list[float]) -> list[float]:
    """Running mean with a memory of about a fiftieth of the run."""
    weight = 1 / max(1.0, len(values) / 50)
    out, mean = [], values[0]
    for value in values:
        mean += weight * (value - mean)
        out.append(mean)
    return out


def _draw_languages(file: Path, part: str, first: dict[str, Any], last: dict[str, Any]) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415

    def found(row: dict[str, Any], language: str) -> float:
        to, fro, _ = row["languages"][language]
        return 50 * float(to + fro)

    order = sorted(last["languages"], key=lambda n: -found(last, n))
    width = -(-len(order) // -(-len(order) // LANGUAGES_PER_ROW))  # rows of like length
    bands = [order[i : i + width] for i in range(0, len(order), width)]
    figure = Figure(figsize=(11, 0.6 + 2.2 * len(bands)), layout="constrained")
    axes = figure.subplots(len(bands), sharey=True, squeeze=False)[:, 0]
    for axis, band in zip(axes, bands, strict=True):
        place = range(len(band))
        axis.bar(
            place, [found(last, n) for n in band], color="tab:blue", label=f"step {last['step']}"
        )
        axis.plot(
            place, [found(first, n) for n in band], "_", color="black", markersize=9,
            markeredgewidth=2, label=f"step {first['step']}",
        )  # fmt: skip
        axis.set_xticks(list(place), band, rotation=90, fontsize="small")
        axis.set_xlim(-0.7, width - 0.3)
        axis.set_ylim(0, 102)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylabel("found, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(f"Held-out pairs found, mean of both directions: {part}")
    figure.savefig(file, dpi=110)

"""One picture per table: a row per language, the subject's number and the baseline's."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display

from matplotlib import pyplot as plt

from evaluation.report import Column, Table

ROW_INCHES = 0.19
INK, PAPER, GRID = "#1b2a41", "#ffffff", "#dde3ea"
COLOURS = ("#0b6e99", "#e07a1f")
GREY = "#9aa5b1"
SHOWN = {
    "xsim": ("src→trg margin", "trg→src margin"),
    "xsim++": ("margin",),
    "tatoeba": ("src→trg", "trg→src"),
    "bucc": ("F1",),
    "alignment": ("argmax AER", "itermax AER"),
    "isotropy": ("mean cosine",),
    "hubness": ("skewness",),
}


def draw(table: Table, file: Path, *, title: str) -> bool:
    """Write a PNG of the table's main columns to `file`; False when it has no rows.

    Languages are sorted, best at the top, by the first column shown.
    """
    columns = {c.name: (i, c) for i, c in enumerate(table.columns)}
    shown = [columns[name] for name in SHOWN[table.metric] if name in columns]
    plain = [(i, c) for i, c in columns.values() if c.baseline][:1]
    if not table.rows or not shown:
        return False
    first, leading = shown[0]

    def rank(lang: str) -> float:
        value = table.rows[lang][first] or 0.0
        return value if leading.better == "higher" else -value

    languages = sorted(table.rows, key=rank)
    height = 1.5 + ROW_INCHES * len(languages)
    figure, axes = plt.subplots(figsize=(7, height), dpi=110, facecolor=PAPER)
    places = range(len(languages))
    for (i, column), colour, size in [
        *((p, GREY, 16) for p in plain),
        *((s, COLOURS[n], 30) for n, s in reversed(list(enumerate(shown)))),
    ]:
        values = [table.rows[lang][i] for lang in languages]
        axes.scatter(
            [float("nan") if v is None else v for v in values],
            places,
            s=size,
            color=colour,
            label=_label(table, i, column),
            zorder=3,
        )
    axes.set_yticks(places, languages, fontsize=7.5, color=INK)
    axes.set_ylim(-0.8, len(languages) - 0.2)
    axes.grid(axis="both", color=GRID, linewidth=0.6, zorder=0)
    axes.tick_params(length=0, colors=INK)
    axes.tick_params(axis="x", top=True, labeltop=len(languages) > 30, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    better = {"higher": "higher is better", "lower": "lower is better", "": ""}[leading.better]
    axes.set_xlabel(", ".join(filter(None, [table.metric, better])), fontsize=8, color=INK)
    figure.suptitle(title, x=0.02, ha="left", fontsize=10, color=INK)
    # Below the title in inches, however high the picture is.
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(0.01, 1 - 0.24 / height),
        ncols=3,
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
    )
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.5 / height, top=1 - 0.8 / height)
    figure.savefig(file)
    plt.close(figure)
    return True


def _label(table: Table, i: int, column: Column) -> str:
    if not table.means:
        return column.name
    name, values = next(reversed(table.means.items()))
    value = values[i]
    return column.name if value is None else f"{column.name} ({name} {value:.{column.digits}f})"

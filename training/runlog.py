"""What a run tells while it runs: JSON lines, TensorBoard, a progress bar. First rank only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

METRICS = "metrics.jsonl"


class RunLog:
    """Rows of metrics.jsonl have a "kind": "step", "validation" or "note"."""

    def __init__(self, path: Path, *, step: int, steps: int, quiet: bool = False):
        """step: optimiser steps already taken, -1 for a fresh start; rows of later ones, from a
        run that was killed after its last checkpoint, are removed."""
        path.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_rows(path) if row["step"] <= step]
        self._file = (path / METRICS).open("w", encoding="utf-8")
        for row in rows:
            self._write(row)
        self._board = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1)
        self._bar = tqdm(
            total=steps,
            initial=max(step, 0),
            unit="step",
            disable=quiet,
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """After optimiser step number `step`, counted from 1."""
        self._record({"kind": "step", "step": step, **numbers}, step)
        shown = {
            k: f"{v:.3f}" for k, v in numbers.items() if k not in ("norm", "rate", "pairs_per_s")
        }
        self._bar.set_postfix(shown | {"pairs/s": f"{numbers['pairs_per_s']:.1f}"}, refresh=False)
        self._bar.update()

    def validation(self, step: int, row: dict[str, Any]) -> None:
        """Scores after `step` optimiser steps."""
        self._record({"kind": "validation", "step": step, **row}, step)

    def note(self, step: int, text: str) -> None:
        """A sentence for whoever watches."""
        self._write({"kind": "note", "step": step, "text": text})
        self.tell(text)

    def tell(self, text: str) -> None:
        """Likewise, where it is not worth a row."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Write out what is buffered."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _record(self, row: dict[str, Any], step: int) -> None:
        self._write(row)
        for name, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{row['kind']}/{name}", value, step)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics; a last line that a killed process left half written is not one."""
    file = path / METRICS
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

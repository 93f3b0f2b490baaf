"""Does XLM-R large's shape export and pass the gate? 24 layers of 1024, 559M random weights.

    python benchmarks/export_large.py --sentences-per-language 3

Writes a checkpoint (2.2 GB) and an fp32 artifact with external data (2.2 GB) to a temporary
folder, runs the parity gate, prints what `mexma-export` prints and what it cost, and keeps
it in `benchmarks/results/`. Takes about 5 GiB of memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from mexma.artifact import TOKENIZER, open_artifact
from model_export.__main__ import summary
from model_export.export import export
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig

ROOT = Path(__file__).resolve().parents[1]
SHAPE = EncoderConfig(
    vocabulary=250_002, hidden=1024, layers=24, heads=16, intermediate=4096, positions=514,
    first_position=2, pad_id=1, norm_eps=1e-5, pooling="first_token",
)  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--sentences-per-language", type=int, default=3)
    p.add_argument("--date", type=date.fromisoformat, default=date.today(), help="of the results")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), a.sentences_per_language)
    text = "\n".join(lines)
    print(text)
    name = f"export_large_{hardware().replace(' ', '-')}_{a.date}.md"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    versions = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "onnx", "onnxscript", "onnxruntime")
    )
    (ROOT / "benchmarks" / "results" / name).write_text(
        "# Export of XLM-R large's shape (random weights), fp32, external data\n\n"
        f"{hardware()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"{versions}; commit {commit}; {a.date}.\n"
        f"`python benchmarks/export_large.py --sentences-per-language {a.sentences_per_language}`\n\n"
        f"```\n{text}\n```\n"
    )


def run(folder: Path, sentences_per_language: int) -> list[str]:
    """Save, load, export, prove; what a person wants to read of it."""
    source, out = folder / "large", folder / "artifact"
    save_random(source)
    started = time.perf_counter()
    exported = export(
        load_checkpoint(str(source)), out, sentences_per_language=sentences_per_language
    )
    took = time.perf_counter() - started
    found = open_artifact(out)
    sizes = {name: record.bytes for name, record in found.manifest.files.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        summary(exported).replace(str(folder) + os.sep, ""),
        "files: " + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sizes.items()),
        f"load, export and gate: {took:.0f} s; peak memory {peak:.1f} GiB",
    ]


def save_random(path: Path) -> None:
    """A checkpoint of `SHAPE`, weights as XLM-R is initialised, the default model's tokenizer."""
    torch.manual_seed(0)
    encoder = Encoder(SHAPE).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.02)
            elif not name.endswith("norm.weight"):
                parameter.zero_()
    tokenizer_json = (ROOT / "models" / "default" / TOKENIZER).read_bytes()
    made = Checkpoint(encoder, tokenizer_json, max_tokens=512, source={"name": "random-large"})
    save_checkpoint(path, made)


def hardware() -> str:
    """The processor's name and core count, from lscpu."""
    listed = subprocess.run(
        ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    fields = dict(line.split(":", 1) for line in listed.splitlines() if ":" in line)
    return f"{fields['Model name'].strip()} {fields['CPU(s)'].strip()} cores"


if __name__ == "__main__":
    main()

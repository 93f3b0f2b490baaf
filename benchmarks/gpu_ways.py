"""The ways to embed that `benchmarks.gpu` compares: this project's, torch's, and the usual library's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from mexma.artifact import PACKED, Artifact, open_artifact, replace_directory
from mexma.errors import MexmaError
from mexma.onnx_runtime import OnnxRuntime
from mexma.session import Session
from mexma.text import TokenBatch
from model_export.export import export, write_unproved
from model_export.packed import PackedOnCpu
from model_export.progress import Say
from training.checkpoint import Checkpoint, save_checkpoint
from training.encoder import Encoder, EncoderConfig
from training.packing import Packed, sentence_vectors, token_states

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.float16 if CUDA else torch.float32
REPLAYED_TOKENS = 32

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Run = Callable[[list[Ids]], Vectors]


@dataclass
class Way:
    """A way to embed. run: None where it is not there, for the reason given. single_only: takes one
    sentence at a time. looked_into: also with larger batches, and kernel by kernel. first_s: seconds of
    the first pass over the batches; seconds: of later ones; overlapped: with `AT_ONCE` batches under way.
    new_ms, again_ms: one sentence of a length that was not seen before, and of the same one again."""

    name: str
    run: Run | None
    reason: str = ""
    single_only: bool = False
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
    """What the service runs on CUDA, and its padded twin; on a CPU what stands for both there."""
    out = folder / "artifact"
    checkpoint.encoder.cpu()
    try:
        if proved:
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

    def way(name: str, load: Callable[[], Session | OnnxRuntime], *, deeper: bool = True) -> Way:
        try:
            session = load()
        except MexmaError as error:
            return Way(name, None, str(error))
        run = session.run
        return Way(name, lambda s: run(TokenBatch.pad(s, manifest.pad_id)), looked_into=deeper)

    ways = [
        way("this project's session, packed", partial(Session, artifact, device="cuda")),
        way("its padded graph", partial(Session, unpacked, device="cuda" if CUDA else "cpu")),
    ]
    if CUDA:
        ways.append(replayed(artifact, checkpoint.encoder.config))
    else:
        packed_there = partial(PackedOnCpu, out, manifest, threads=1)
        ways.append(way("its packed graph, attention by a CPU's", lambda: packed_there().session))
    say("our sessions loaded")
    return ways


def replayed(artifact: Artifact, config: EncoderConfig) -> Way:
    """One sentence of up to `REPLAYED_TOKENS` tokens by a recorded CUDA graph, on bound inputs and output."""
    name = f"the padded one, a CUDA graph of 1 x {REPLAYED_TOKENS}"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"})
    try:
        session = ort.InferenceSession(str(artifact.model), options, providers=[provider])
        empty = np.zeros((1, REPLAYED_TOKENS), np.int64)
        inputs = [ort.OrtValue.ortvalue_from_numpy(empty + 1, "cuda", 0) for _ in range(2)]
        output = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, config.dim), np.float32), "cuda", 0)
        bound = session.io_binding()
        for key, value in zip(artifact.manifest.input_names, inputs, strict=True):
            bound.bind_ortvalue_input(key, value)
        bound.bind_ortvalue_output(artifact.manifest.output_name, output)
        for _ in range(3):
            session.run_with_iobinding(bound)
    except Exception as error:  # noqa: BLE001  the runtime's own exceptions derive from this
        return Way(name, None, f"failed: {type(error).__name__}: {str(error)[:160]}")

    def run(sequences: list[Ids]) -> Vectors:
        found = []
        for ids in sequences:
            batch = TokenBatch.pad([ids], config.pad_id)
            for value, part in zip(inputs, (batch.ids, batch.mask), strict=True):
                filled = empty + (config.pad_id if part is batch.ids else 0)
                filled[:, : part.shape[1]] = part
                value.update_inplace(filled)
            session.run_with_iobinding(bound)
            found.append(output.numpy()[0])
        return np.array(found)

    return Way(name, run, single_only=True)


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

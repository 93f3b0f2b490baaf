"""Read what others published: a Hugging Face directory, or one fetched by its hub name.

Understands the XLM-RoBERTa and BERT family, bare or with the sentence-transformers
`modules.json` that says how token states become a vector. Runs no code from the directory
and unpickles nothing but tensors. What it does not understand it refuses: a leftover tensor
or an unknown module would mean that our vectors are not that model's vectors.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mexma.artifact import hash_file
from mexma.errors import CheckpointError
from training.encoder import Encoder, EncoderConfig, Pooling

FAMILY = ("xlm-roberta", "roberta", "bert")

# Published without modules.json (or before it was added); pooling as their authors say.
KNOWN_POOLING: dict[str, Pooling] = {"facebook/MEXMA": "first_token"}

# Trained heads for other tasks and buffers that old versions saved.
IGNORED = re.compile(r"^(pooler\.|lm_head\.|cls\.|embeddings\.(position|token_type)_ids$)")

EMBEDDINGS = {
    "words.weight": "word_embeddings.weight",
    "positions.weight": "position_embeddings.weight",
    "segment": "token_type_embeddings.weight",
    "norm.weight": "LayerNorm.weight",
    "norm.bias": "LayerNorm.bias",
}
LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "output_norm": "output.LayerNorm",
}


def fetch(name: str) -> Path:
    """Download the repository `name` ("owner/model") from the hub, or find it in the cache.

    Raises CheckpointError when it cannot be had.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  slow, and only needed here

    wanted = ["*.json", "model*.safetensors", "?_Dense/*"]
    try:
        path = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(path.glob("model*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model.bin"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name}: neither a directory here nor a model the hub could provide ({reason})"
        ) from None
    return path


def tensor_names(config: EncoderConfig) -> dict[str, str]:
    """Our parameter names -> Hugging Face tensor names, pooling head excluded."""
    names = {f"embeddings.{ours}": f"embeddings.{theirs}" for ours, theirs in EMBEDDINGS.items()}
    for i in range(config.layers):
        for ours, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                names[f"layers.{i}.{ours}.{kind}"] = f"encoder.layer.{i}.{theirs}.{kind}"
    return names


def read_config(path: Path) -> EncoderConfig:
    """Parse the `config.json` in `path`; pooling fields keep their defaults.

    Raises CheckpointError for anything but the family this project encodes with.
    """
    file = path / "config.json"
    raw = read_json(file)
    kind = raw.get("model_type")
    if kind not in FAMILY:
        raise CheckpointError(
            f"{file}: model_type must be one of {', '.join(FAMILY)}, found {kind!r}"
        )
    fixed = {
        "hidden_act": "gelu", "position_embedding_type": "absolute",
        "is_decoder": False, "add_cross_attention": False,
    }  # fmt: skip
    for name, only in fixed.items():
        if (found := raw.get(name, only)) != only:
            raise CheckpointError(f"{file}: {name} must be {only!r}, found {found!r}")
    pad_id = raw.get("pad_token_id")
    if pad_id is None:
        pad_id = 0 if kind == "bert" else 1
    try:
        config = EncoderConfig(
            vocabulary=raw["vocab_size"],
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            intermediate=raw["intermediate_size"],
            positions=raw["max_position_embeddings"],
            first_position=0 if kind == "bert" else pad_id + 1,
            pad_id=pad_id,
            norm_eps=raw.get("layer_norm_eps", 1e-12),
            dropout=raw.get("hidden_dropout_prob", 0.1),
        )
    except KeyError as error:
        raise CheckpointError(f"{file}: field {error} is missing") from None
    if config.hidden % config.heads:
        raise CheckpointError(
            f"{file}: hidden_size {config.hidden} is not a multiple of the "
            f"{config.heads} attention heads"
        )
    return config


def read_encoder(path: Path, config: EncoderConfig) -> tuple[Encoder, dict[str, str]]:
    """Build the encoder of `config` from the weights in `path`, as float32.

    Returns it in evaluation mode, its dense head (if any) still random, with the SHA-256 of
    each weight file. Raises CheckpointError naming the tensor that is missing, misshapen
    or not understood.
    """
    files = weight_files(path)
    stored: dict[str, Tensor] = {}
    for file in files:
        stored.update(_plain_name(name, tensor) for name, tensor in read_tensors(file).items())
    with torch.device("meta"):
        encoder = Encoder(config)
    shapes = {name: p.shape for name, p in encoder.named_parameters()}
    state = {}
    for ours, theirs in tensor_names(config).items():
        if theirs not in stored:
            raise CheckpointError(f"{path}: the weights lack the tensor {theirs}")
        tensor = stored.pop(theirs)
        if ours == "embeddings.segment":
            tensor = tensor[0]
        if tensor.shape != shapes[ours]:
            raise CheckpointError(
                f"{path}: tensor {theirs} has shape {list(tensor.shape)}, but config.json "
                f"asks for {list(shapes[ours])}"
            )
        state[ours] = tensor.to(torch.float32)
    if leftover := sorted(name for name in stored if not IGNORED.match(name)):
        raise CheckpointError(
            f"{path}: {len(leftover)} tensors have no place in this architecture, "
            f"the first is {leftover[0]}"
        )
    encoder.load_state_dict(state, strict=False, assign=True)
    if encoder.head is not None:
        encoder.head.to_empty(device="cpu")
    return encoder.eval(), {file.name: hash_file(file).sha256 for file in files}


def read_modules(path: Path, raw_config: EncoderConfig) -> tuple[EncoderConfig, Path | None]:
    """Apply the sentence-transformers description in `path` to `raw_config`.

    Returns the completed configuration and the directory of the dense layer's weights, if
    there is one. Raises CheckpointError for a module or mode that the encoder does not have.
    """
    file = path / "modules.json"
    try:
        modules = [(str(m["type"]).rsplit(".", 1)[-1], path / m["path"]) for m in read_json(file)]
    except (KeyError, TypeError):
        raise CheckpointError(f"{file}: every module needs a type and a path") from None
    kinds = [kind for kind, _ in modules]
    allowed = ["Transformer", "Pooling", "Dense", "Normalize"]
    if unknown := [kind for kind in kinds if kind not in allowed]:
        raise CheckpointError(
            f"{file}: module {unknown[0]!r} is not one of {', '.join(allowed)}, which are all "
            "that can be exported"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or kinds != [k for k in allowed if k in kinds]:
        raise CheckpointError(
            f"{file}: expected Transformer, Pooling, then at most one Dense and one Normalize, "
            f"found {', '.join(kinds)}"
        )
    config = replace(raw_config, pooling=_pooling_mode(modules[1][1] / "config.json"))
    if "Dense" not in kinds:
        return config, None
    dense = modules[2][1]
    raw = read_json(dense / "config.json")
    activation = str(raw.get("activation_function", "")).rsplit(".", 1)[-1]
    if activation != "Tanh" or raw.get("in_features") != config.hidden:
        raise CheckpointError(
            f"{dense / 'config.json'}: expected a Dense layer from {config.hidden} features with "
            f"Tanh, found {raw.get('in_features')} with {activation or 'nothing'}"
        )
    return replace(config, head=int(raw["out_features"])), dense


def transformer_directory(path: Path) -> Path:
    """Where the backbone's own files lie: `path`, or the folder modules.json names."""
    file = path / "modules.json"
    if not file.is_file():
        return path
    modules = read_json(file)
    try:
        return path / str(modules[0]["path"])
    except (KeyError, IndexError, TypeError):
        raise CheckpointError(f"{file}: expected a list of modules, found none") from None


def read_limits(directory: Path) -> int | None:
    """max_seq_length of the backbone's `sentence_bert_config.json`, if it says so."""
    file = directory / "sentence_bert_config.json"
    if not file.is_file():
        return None
    raw = read_json(file)
    if raw.get("do_lower_case"):
        raise CheckpointError(
            f"{file}: do_lower_case is set, but lower-casing has to be part of tokenizer.json"
        )
    found = raw.get("max_seq_length")
    return None if found is None else int(found)


def read_prompt(path: Path) -> str:
    """What sentence-transformers would put before every text unasked; often nothing."""
    file = path / "config_sentence_transformers.json"
    raw = read_json(file) if file.is_file() else {}
    name = raw.get("default_prompt_name")
    if name is None:
        return ""
    prompt = raw.get("prompts", {}).get(name)
    if not isinstance(prompt, str):
        raise CheckpointError(f"{file}: default_prompt_name is {name!r}, but prompts lacks it")
    return prompt


def load_head(head: nn.Linear, directory: Path) -> None:
    """Fill the dense `head` from the sentence-transformers module in `directory`."""
    (file,) = weight_files(directory)
    stored = read_tensors(file)
    for name, parameter in head.named_parameters():
        tensor = stored.get(f"linear.{name}")
        if tensor is None or tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{file}: expected linear.{name} of shape {list(parameter.shape)}, found "
                f"{'none' if tensor is None else list(tensor.shape)}"
            )
        parameter.data.copy_(tensor)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights: safetensors, in shards or not, else a .bin."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    pickled = path / "pytorch_model.bin"
    if single.is_file():
        return [single]
    if index.is_file():
        files = [path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        if missing := [file for file in files if not file.is_file()]:
            raise CheckpointError(f"{missing[0]}: listed in {index.name} but missing")
        return files
    if pickled.is_file():
        return [pickled]
    raise CheckpointError(f"{path}: expected model.safetensors or pytorch_model.bin, found neither")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one weight file. Raises CheckpointError when it is damaged."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from None
    except Exception as error:  # noqa: BLE001  torch.load raises what pickle and zip please
        raise CheckpointError(
            f"{file}: expected a file of tensors only, and could not read one "
            f"({type(error).__name__})"
        ) from None
    return tensors


def read_json(file: Path) -> Any:
    """Parse a JSON file. Raises CheckpointError when it is missing or is none."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        inside = [name for name in ("final", "best") if (file.parent / name).is_dir()]
        hint = f"; a run's weights are in its {' and '.join(inside)}" if inside else ""
        raise CheckpointError(f"{file}: expected this file, found none{hint}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None


def _plain_name(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name = re.sub(r"^(roberta|bert)\.", "", name)
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")  # conversions of the first BERTs
    return name.replace("LayerNorm.beta", "LayerNorm.bias"), tensor


def _pooling_mode(file: Path) -> Pooling:
    raw = read_json(file)
    if "pooling_mode" in raw:
        modes = [str(raw["pooling_mode"])]
    else:
        modes = [
            k.removeprefix("pooling_mode_") for k in sorted(raw) if "pooling_mode_" in k and raw[k]
        ]
    ours: dict[str, Pooling] = {
        "cls_token": "first_token", "cls": "first_token",
        "mean_tokens": "mean", "mean": "mean",
    }  # fmt: skip
    if len(modes) != 1 or modes[0] not in ours:
        raise CheckpointError(
            f"{file}: pooling must be the first token or the mean, found {' + '.join(modes)}"
        )
    if raw.get("include_prompt", True) is False:
        raise CheckpointError(f"{file}: pooling that leaves out the prompt is not supported")
    return ours[modes[0]]

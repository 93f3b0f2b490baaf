"""An artifact under ONNX Runtime, where our own engines cannot run it.

On CUDA it is the artifact's packed graph that runs, where there is one: tokens end to end, in attention by a
kernel that takes any lengths. The padded graph's attention is cuDNN's there, which plans for each shape of
a batch that it has not seen: that is taken to be why requests of ever other lengths took 60 ms each on an
H100 (onnxruntime 1.31) and those of known ones 2. It is told to leave that.
"""

from __future__ import annotations

import io
import logging
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Read when the library is loaded. Without it onnxruntime 1.32 keeps a database of events in the user's
# home and reports them to its maker over the network; its `disable_telemetry_events` comes too late.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("ORT_ENABLE_CUDNN_FLASH_ATTENTION", "0")

import onnxruntime as ort

from mexma.artifact import Artifact
from mexma.errors import ArtifactError, DeviceUnavailable, EngineError
from mexma.text import TokenBatch

log = logging.getLogger(__name__)

# Of whichever package provides it: onnxruntime or onnxruntime-gpu.
VERSION: str = ort.__version__

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

PACKED_INPUTS = ("tokens", "places", "rows", "cells", "bounds")
"""Of a packed graph, named and shaped as in `TokenBatch`; pooling by the first token needs no rows."""


class OnnxRuntime:
    """A graph on one device. `run` may be called from several threads."""

    def __init__(
        self, artifact: Artifact, *, device: str, threads: int, packed: Path | None = None
    ):
        """Load `artifact` on `device`, "cpu" or "cuda", with `threads` compute threads.

        packed: the graph to run in the place of the padded one; on CUDA the artifact's own.

        Raises DeviceUnavailable when the device cannot be used: there is no silent fallback. Raises
        ArtifactError when the runtime cannot load the graph or its inputs and outputs are not those of
        the manifest.
        """
        provider = PROVIDERS[device]
        if provider not in ort.get_available_providers():
            raise DeviceUnavailable(
                f"device {device} was asked for, but the installed onnxruntime offers only "
                f"{', '.join(ort.get_available_providers())}; install the extra "
                f"{'gpu (make serve DEVICE=cuda)' if device == 'cuda' else 'cpu'} or choose another device"
            )
        manifest = artifact.manifest
        missing = _load_cuda_libraries() if device == "cuda" else ""
        packed = packed or (artifact.packed if device == "cuda" else None)
        self.packed = packed is not None
        model = packed or artifact.model
        try:
            self._session = ort.InferenceSession(
                str(model), _options(threads), providers=[provider]
            )
        except Exception as error:  # the runtime's own exceptions derive from Exception alone
            raise ArtifactError(f"{model}: the runtime refuses it: {error}") from error
        if self._session.get_providers()[0] != provider:
            raise DeviceUnavailable(
                f"device {device} was asked for, but the runtime could not start it "
                f"({missing or 'driver missing or too old? nvidia-smi tells'}) and would have run on "
                f"{self._session.get_providers()[0]}"
            )
        if device == "cuda" and packed is None:
            log.warning(
                "%s (%s) pads its batches on a GPU; faster there, in half precision and without padding: "
                "mexma-export %s OUT --precision fp16",
                manifest.name, manifest.precision, artifact.path,
            )  # fmt: skip
        self._session.disable_fallback()
        inputs = tuple(i.name for i in self._session.get_inputs())
        outputs = {o.name: o.shape for o in self._session.get_outputs()}
        expected = PACKED_INPUTS if packed else manifest.input_names
        # Which the exporter may leave out where nothing needs them.
        unused = {"rows"} if packed and manifest.pooling == "first_token" else set()
        if {*inputs} | unused != {*expected}:
            raise ArtifactError(f"{model}: expected inputs {expected}, found {inputs}")
        if outputs.get(manifest.output_name, [None])[-1] != manifest.dim:
            raise ArtifactError(
                f"{model}: expected output {manifest.output_name} [batch, {manifest.dim}], "
                f"found {outputs}"
            )
        if manifest.token_output_name not in (None, *outputs):
            raise ArtifactError(
                f"{model}: expected output {manifest.token_output_name}, found {outputs}"
            )
        self._ids, self._mask = manifest.input_names
        self._packed_inputs = inputs
        self._output = manifest.output_name
        self._token_output = manifest.token_output_name

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Sentence vectors float32 `[n, dim]` of a batch. Raises EngineError."""
        return self._run(self._output, batch)

    def token_states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Token states float32 `[n, longest, hidden]` of a batch, meaningless at padding.

        Raises EngineError, also when the artifact was exported without them.
        """
        if self._token_output is None:
            raise EngineError("this artifact has no token states; export it with --token-states")
        states = self._run(self._token_output, batch)
        return in_rectangle(states, batch) if self.packed else states

    def _run(self, output: str, batch: TokenBatch) -> NDArray[np.float32]:
        if self.packed:
            feed: dict[str, Any] = {name: getattr(batch, name) for name in self._packed_inputs}
        else:
            feed = {self._ids: batch.ids, self._mask: batch.mask}
        try:
            (found,) = self._session.run([output], feed)
        except Exception as error:
            raise EngineError(f"inference failed on {batch.mask.shape}: {error}") from error
        return np.asarray(found, np.float32)


def in_rectangle(states: NDArray[np.float32], batch: TokenBatch) -> NDArray[np.float32]:
    """Token states `[tokens, hidden]` of a batch, laid out as `[n, longest, hidden]`, zero at padding."""
    found = np.zeros((*batch.mask.shape, states.shape[1]), np.float32)
    found[batch.mask.astype(bool)] = states
    return found


def _load_cuda_libraries() -> str:
    """Make CUDA's libraries of the extra `gpu` known to the loader; what is missing, "" for nothing.

    pip puts them where the loader does not look, and the runtime does not look there by itself.
    Libraries that another package has loaded, or of the system, serve as well.
    """
    said = io.StringIO()
    with redirect_stdout(said):  # it prints what it does not find
        ort.preload_dlls(msvc=False)
    return "; ".join(line for line in said.getvalue().splitlines() if line.startswith("Failed"))


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Weights stored in 8 or 4 bits are widened once, at load, and computed in fp32; with the
    # runtime's own QDQ handling they would be re-quantised by operators that differ per CPU.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Threads that spin between operators steal the cores the HTTP server needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options

"""Run an artifact: token ids in, normalised sentence vectors out, on the engine that suits.

On a CPU that is our own (`mexma.native`), where it was built, has a kernel for the processor
that was found to be faster, and computes the artifact within its promise; else, and on CUDA, ONNX
Runtime. Which one runs and why is in `engine` and `reason`; the service says both. This and
`mexma.onnx_runtime` are the one place that imports an inference runtime. The export's parity gate
runs this very class, so what was proved is what is served.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mexma import native
from mexma.artifact import Artifact
from mexma.errors import DeviceUnavailable, EngineError
from mexma.onnx_runtime import PROVIDERS, OnnxRuntime, in_rectangle
from mexma.text import TokenBatch
from mexma.weights import UnknownGraph, read_weights

__all__ = ["ENGINES", "PROVIDERS", "Device", "Engine", "Session"]

Device = Literal["cpu", "cuda"]
Engine = Literal["auto", "amx", "avx512_bf16", "avx512", "avx2", "portable", "onnxruntime"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

# What the manifest's precision promises of the arithmetic: fp32 vectors are the original's, compact
# ones are off by rounding to 8 bits anyway.
ARITHMETIC = {"fp32": ("fp32",), "compact": ("bf16", "fp32")}


class Session:
    """A loaded model on one device. `run` may be called from several threads.

    engine: the kernel of our own that runs, or "onnxruntime". arithmetic: of its products.
    reason: why it is not our own engine, "" when it is or when ONNX Runtime was asked for.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: Device = "cpu",
        threads: int = 0,
        engine: Engine = "auto",
    ):
        """Load `artifact` on `device` with `threads` compute threads (0: one per core).

        Raises DeviceUnavailable when the device or a kernel that is named cannot be used: only
        "auto" chooses by itself. Raises ArtifactError when the runtime cannot load the graph or
        its inputs and outputs are not those of the manifest.
        """
        self.device = device
        self.threads = threads or len(os.sched_getaffinity(0))
        self.reason = ""
        self._native: native.NativeEncoder | None = None
        self._onnx: OnnxRuntime | None = None
        if device == "cpu" and engine != "onnxruntime":
            self._load_native(artifact, engine)
        elif engine not in ("auto", "onnxruntime"):
            raise DeviceUnavailable(
                f"engine {engine} runs on cpu, and device {device} was asked for; leave one out"
            )
        if self._native is None:
            self._onnx = OnnxRuntime(artifact, device=device, threads=self.threads)
            self.engine = "onnxruntime"
            precision = artifact.manifest.precision
            self.arithmetic = "fp32" if precision == "compact" else precision
        self._has_token_states = artifact.manifest.token_output_name is not None

    def _load_native(self, artifact: Artifact, engine: Engine) -> None:
        manifest = artifact.manifest
        try:
            kernel = _kernel(engine, manifest.precision)
            self._native = native.NativeEncoder(
                read_weights(artifact),
                kernel=kernel.name,
                threads=self.threads,
                mean_pooling=manifest.pooling == "mean",
                normalise=manifest.architecture["normalise"],
            )
        except (DeviceUnavailable, UnknownGraph, ValueError, KeyError, RuntimeError) as error:
            if engine != "auto":
                raise DeviceUnavailable(f"engine {engine} cannot be used: {error}") from error
            self.reason = str(error)
        else:
            self.engine, self.arithmetic = kernel.name, kernel.arithmetic

    @property
    def pads(self) -> bool:
        """Whether a batch costs its rectangle, `n * longest` tokens, and not only its tokens."""
        return self._onnx is not None and not self._onnx.packed

    @property
    def streams(self) -> int:
        """Calls at once that use the device best. Our own engine gives half of its threads to each of
        two; ONNX Runtime's would compete. A GPU computes one while the other's texts are copied there."""
        if self.device == "cuda":
            return 2
        return 2 if self._native is not None and self.threads > 1 else 1

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Sentence vectors float32 `[n, dim]` of a batch. Raises EngineError."""
        if self._onnx is not None:
            return self._onnx.run(batch)
        assert self._native is not None  # noqa: S101  one of both is there
        try:
            return self._native.run(batch.tokens, batch.lengths)
        except (IndexError, ValueError, MemoryError) as error:
            raise EngineError(f"inference failed on {len(batch.lengths)} texts: {error}") from error

    def token_states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Token states float32 `[n, longest, hidden]` of a batch, meaningless at padding.

        Raises EngineError, also when the artifact was exported without them.
        """
        if not self._has_token_states:
            raise EngineError("this artifact has no token states; export it with --token-states")
        if self._onnx is not None:
            return self._onnx.token_states(batch)
        assert self._native is not None  # noqa: S101  one of both is there
        try:
            packed = self._native.token_states(batch.tokens, batch.lengths)
        except (IndexError, ValueError, MemoryError) as error:
            raise EngineError(f"inference failed on {len(batch.lengths)} texts: {error}") from error
        return in_rectangle(packed, batch)


def _kernel(engine: Engine, precision: str) -> native.Kernel:
    """The kernel to use. Raises DeviceUnavailable with the reason why there is none."""
    if native.NOT_BUILT:
        raise DeviceUnavailable(native.NOT_BUILT)
    allowed = ARITHMETIC.get(precision)
    if allowed is None:
        raise DeviceUnavailable(f"artifacts of precision {precision} run under ONNX Runtime")
    reasons = []
    for kernel in native.kernels():
        if engine not in ("auto", kernel.name):
            continue
        if kernel.arithmetic not in allowed:
            reasons.append(f"{kernel.name}: computes in {kernel.arithmetic}, not in fp32")
        elif kernel.missing:
            reasons.append(f"{kernel.name}: {kernel.missing}")
        elif engine == "auto" and kernel.slow:
            reasons.append(f"{kernel.name}: {kernel.slow}")
        else:
            return kernel
    raise DeviceUnavailable("; ".join(reasons) or f"no kernel is called {engine}")

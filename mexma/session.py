"""Run an artifact: token ids in, normalised sentence vectors out, on the engine that suits.

That is one of our own (`mexma.native` on a CPU, `mexma.cuda` on a GPU), where it was built, can run
there, and computes the artifact within its promise; else ONNX Runtime. Which one runs and why is in
`engine` and `reason`; the service says both. This and `mexma.onnx_runtime` are the one place that imports
an inference runtime. The export's parity gate runs this very class, on a CPU: what was proved is what is
served there. That the GPU's engine gives the same vectors, `benchmarks.gpu` proves on a machine with one.
"""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mexma import cuda, native
from mexma.artifact import Artifact
from mexma.errors import DeviceUnavailable, EngineError
from mexma.onnx_runtime import PROVIDERS, OnnxRuntime, in_rectangle
from mexma.text import TokenBatch
from mexma.weights import UnknownGraph, read_weights

__all__ = ["ENGINES", "PROVIDERS", "Device", "Engine", "Session"]

Device = Literal["cpu", "cuda"]
Engine = Literal[
    "auto", "amx", "avx512_bf16_vnni", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable", "cuda",
    "onnxruntime",
]  # fmt: skip
ENGINES: tuple[Engine, ...] = get_args(Engine)

# What the manifest's precision promises of the arithmetic: fp32 vectors are the original's, compact
# ones are off by rounding to 8 bits anyway.
ARITHMETIC = {"fp32": ("fp32",), "compact": ("bf16 and int8", "bf16", "int16 and int8", "fp32")}
IN_HALF = ("fp16", "compact")
"""What is computed in fp16 on a GPU; compact artifacts too, for it rounds less than bf16 does."""
FAILED = (IndexError, ValueError, MemoryError, RuntimeError)
UNFIT = (DeviceUnavailable, UnknownGraph, ValueError, KeyError, RuntimeError)


class Session:
    """A loaded model on one device. `run` may be called from several threads.

    engine: the kernel of our own that runs, "cuda" for the GPU's, or "onnxruntime". arithmetic: of its
    products.
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
        self.engine: Engine
        self.threads = threads or len(os.sched_getaffinity(0))
        self.reason = ""
        self._own: native.NativeEncoder | cuda.CudaEncoder | None = None
        self._onnx: OnnxRuntime | None = None
        if engine != "onnxruntime":
            if device != ("cuda" if engine == "cuda" else "cpu") and engine != "auto":
                own = "cuda" if engine == "cuda" else "cpu"
                raise DeviceUnavailable(
                    f"engine {engine} runs on {own}, and the device is {device}; ask for device {own}, or "
                    "for another engine"
                )
            try:
                if device == "cuda":
                    self._load_cuda(artifact)
                else:
                    self._load_native(artifact, engine)
            except UNFIT as error:
                if engine != "auto":
                    raise DeviceUnavailable(f"engine {engine} cannot be used: {error}") from error
                self.reason = repr(error) if isinstance(error, KeyError) else str(error)
        if self._own is None:
            try:
                self._onnx = OnnxRuntime(artifact, device=device, threads=self.threads)
            except DeviceUnavailable as error:
                if device == "cpu" or not self.reason:
                    raise
                raise DeviceUnavailable(f"{error}; our own engine: {self.reason}") from error
            self.engine = "onnxruntime"
            precision = artifact.manifest.precision
            self.arithmetic = "fp32" if precision == "compact" else precision
        self._has_token_states = artifact.manifest.token_output_name is not None

    def _load_native(self, artifact: Artifact, engine: Engine) -> None:
        manifest = artifact.manifest
        kernel = _kernel(engine, manifest.precision)
        self._own = native.NativeEncoder(
            read_weights(artifact),
            kernel=kernel.name,
            threads=self.threads,
            mean_pooling=manifest.pooling == "mean",
            normalise=manifest.architecture["normalise"],
        )
        self.engine, self.arithmetic = cast(Engine, kernel.name), kernel.arithmetic

    def _load_cuda(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        if manifest.precision not in IN_HALF:
            raise DeviceUnavailable(
                f"it computes in fp16, which artifacts of precision {manifest.precision} do not promise"
            )
        self._own = cuda.CudaEncoder(
            read_weights(artifact),
            mean_pooling=manifest.pooling == "mean",
            normalise=manifest.architecture["normalise"],
        )
        self.engine, self.arithmetic = "cuda", "fp16"

    @property
    def pads(self) -> bool:
        """Whether a batch costs its rectangle, `n * longest` tokens, and not only its tokens."""
        return self._onnx is not None and not self._onnx.packed

    @property
    def streams(self) -> int:
        """Calls at once that use the device best. Our own engine gives half of its threads to each of
        two; ONNX Runtime's would compete. A GPU computes one while the other's texts are copied there, and
        what one leaves idle the other takes."""
        if self.device == "cuda":
            return 2
        return 2 if self._own is not None and self.threads > 1 else 1

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Sentence vectors float32 `[n, dim]` of a batch. Raises EngineError."""
        if self._onnx is not None:
            return self._onnx.run(batch)
        assert self._own is not None  # noqa: S101  one of both is there
        try:
            return self._own.run(batch.tokens, batch.lengths)
        except FAILED as error:
            raise EngineError(f"inference failed on {len(batch.lengths)} texts: {error}") from error

    def token_states(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Token states float32 `[n, longest, hidden]` of a batch, meaningless at padding.

        Raises EngineError, also when the artifact was exported without them.
        """
        if not self._has_token_states:
            raise EngineError("this artifact has no token states; export it with --token-states")
        if self._onnx is not None:
            return self._onnx.token_states(batch)
        assert self._own is not None  # noqa: S101  one of both is there
        try:
            packed = self._own.token_states(batch.tokens, batch.lengths)
        except FAILED as error:
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

"""Compiles the graphs with TensorRT-RTX, which needs no GPU: what it refuses, the TensorRT of a Jetson would too.

The package pair `tensorrt-rtx-cu13-libs` / `-bindings` 1.7.1.116 has TensorRT 11's builder and ONNX parser, and is
driven by the code that builds the plans of a device (fusar_edge.engines.trt_build). A plan is made for one GPU
architecture and thrown away: the gate proves that it can be made, never that it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.engines.kernels import Kernels, kernels
from fusar_edge.engines.monitor import Progress
from fusar_edge.engines.profiles import Profile, decoder_profiles, vision_profiles
from fusar_edge.engines.trt_build import build_plan
from fusar_edge.errors import MissingExtraError
from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings

BINDINGS, LIBRARIES = "tensorrt_rtx_bindings", "tensorrt_rtx_libs"
COMPUTE_CAPABILITY = "SM86"
"""Ampere, the generation of Orin (SM87 is no target of TensorRT-RTX)."""


@dataclass(frozen=True)
class Compiled:
    """What one graph gave."""

    graph: str
    seconds: float
    plan_bytes: int
    layers: int
    kernels: Kernels


def compile_pair(
    folder: Path, settings: BundleSettings, batch: int = 8, prefill_tokens: int = 512, cache_tokens: int = 1024
) -> list[Compiled]:
    """Compile vision.onnx and decoder.onnx of `folder`. Raises GateError that names the node."""
    return [
        compiled(folder / VISION, vision_profiles(settings, batch)),
        compiled(folder / DECODER, decoder_profiles(settings, prefill_tokens, cache_tokens)),
    ]


def compiled(
    onnx_path: Path, profiles: list[Profile], capability: str = COMPUTE_CAPABILITY, progress: Progress | None = None
) -> Compiled:
    """Parse and build one graph, strongly typed, for `capability`, a name of TensorRT-RTX's ComputeCapability."""
    trt = tensorrt_rtx()

    def target(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)

    messages: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fusar-edge-gate-") as folder:
        plan = Path(folder) / "plan"
        result = build_plan(onnx_path, profiles, plan, trt=trt, progress=progress, prepare=target, hear=messages.append)
    return Compiled(onnx_path.name, result.seconds, result.plan_bytes, result.layers, kernels(messages))


def tensorrt_rtx() -> Any:
    """The binding module, its libraries loaded. Raises MissingExtraError where either package is absent."""
    for package in (LIBRARIES, BINDINGS):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{package} is not installed: pip install 'tensorrt-rtx-cu13-libs==1.7.1.116' "
                "'tensorrt-rtx-cu13-bindings==1.7.1.116' (Linux, x86-64)"
            )
    return importlib.import_module(BINDINGS)

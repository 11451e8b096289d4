"""Compiles the graphs with TensorRT-RTX, which needs no GPU: what it refuses, the TensorRT of a Jetson would too.

The package pair `tensorrt-rtx-cu13-libs` / `-bindings` 1.7.1.116 has TensorRT 11's builder and ONNX parser. A plan is
made for one GPU architecture and thrown away: the gate proves that it can be made, never that it runs.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.errors import GateError, MissingExtraError
from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings

BINDINGS, LIBRARIES = "tensorrt_rtx_bindings", "tensorrt_rtx_libs"
COMPUTE_CAPABILITY = "SM86"
"""Ampere, the generation of Orin (SM87 is no target of TensorRT-RTX)."""

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]
"""Input -> (least, usual, largest) shape."""


@dataclass(frozen=True)
class Compiled:
    """What one graph gave."""

    graph: str
    seconds: float
    plan_bytes: int
    layers: int


def vision_profiles(settings: BundleSettings) -> list[Profile]:
    """Batch 1 to 8, 1 to 1024 anchors."""
    size, nodes, bands = settings.image_size, settings.anchor_nodes**2, settings.anchors.bands

    def shapes(batch: int, anchors: int) -> dict[str, Shape]:
        return {
            "pixels": (batch, 1, size, size),
            "anchors": (batch, anchors, bands),
            "anchor_positions": (batch, anchors, 2),
            "anchor_mask": (batch, anchors),
        }

    return [_profile(shapes(1, 1), shapes(1, nodes), shapes(8, 1024))]


def decoder_profiles(settings: BundleSettings) -> list[Profile]:
    """Prefill (1 to 512 new tokens after 0 to 64) and decode (1 new token after 1 to 1024)."""
    s = settings

    def shapes(new: int, past: int) -> dict[str, Shape]:
        return {
            "input_ids": (1, new),
            "visual_tokens": (1, s.cells**2, s.channels),
            "visual_index": (1, new),
            "position_ids": (3, 1, new),
            "past": (past, s.layers, 2, 1, s.kv_heads, s.head_dim),
        }

    prefill = _profile(shapes(1, 0), shapes(256, 0), shapes(512, 64))
    decode = _profile(shapes(1, 1), shapes(1, 512), shapes(1, 1024))
    return [prefill, decode]


def _profile(least: dict[str, Shape], usual: dict[str, Shape], largest: dict[str, Shape]) -> Profile:
    return {name: (least[name], usual[name], largest[name]) for name in least}


def compile_pair(folder: Path, settings: BundleSettings) -> list[Compiled]:
    """Compile vision.onnx and decoder.onnx of `folder`. Raises GateError that names the node."""
    return [
        compiled(folder / VISION, vision_profiles(settings)),
        compiled(folder / DECODER, decoder_profiles(settings)),
    ]


def compiled(onnx_path: Path, profiles: list[Profile]) -> Compiled:
    """Parse and build one graph, strongly typed, for `COMPUTE_CAPABILITY`."""
    trt = tensorrt_rtx()
    logger, said = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    start = time.perf_counter()
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise GateError(f"{onnx_path}: TensorRT-RTX {trt.__version__} refuses it: {'; '.join(map(_told, errors))}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, COMPUTE_CAPABILITY), 0)
    for profile in profiles:
        config.add_optimization_profile(_optimisation_profile(builder, network, profile, onnx_path))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise GateError(f"{onnx_path}: TensorRT-RTX {trt.__version__} cannot build it: {' | '.join(said[-3:])}")
    return Compiled(onnx_path.name, time.perf_counter() - start, plan.nbytes, network.num_layers)


def _told(error: Any) -> str:
    return f"node {error.node_name() or '?'} ({error.node_operator() or '?'}): {error.desc()}"


def _optimisation_profile(builder: Any, network: Any, profile: Profile, onnx_path: Path) -> Any:
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    if names != set(profile):
        raise GateError(f"{onnx_path}: its inputs are {sorted(names)}; the contract has {sorted(profile)}")
    made = builder.create_optimization_profile()
    for name, shapes in profile.items():
        made.set_shape(name, *shapes)
    return made


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors, and the list it keeps them in."""
    said: list[str] = []

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                said.append(message)

    return Listener(), said


def tensorrt_rtx() -> Any:
    """The binding module, its libraries loaded. Raises MissingExtraError where either package is absent."""
    for package in (LIBRARIES, BINDINGS):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"{package} is not installed: pip install 'tensorrt-rtx-cu13-libs==1.7.1.116' "
                "'tensorrt-rtx-cu13-bindings==1.7.1.116' (Linux, x86-64)"
            )
    return importlib.import_module(BINDINGS)

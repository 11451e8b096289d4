"""One ONNX graph -> one TensorRT plan. One code path for TensorRT 8.6, 10.3 to 10.16 and 11.

The builder is real in two places: on the device (package `tensorrt`), and in the compile gate (TensorRT-RTX, no GPU).
Explicit Q/DQ alone: there is no calibrator here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.engines.monitor import Monitor, Progress, attached_monitor
from fusar_edge.engines.profiles import Profile, optimisation_profile
from fusar_edge.engines.timing_cache import TimingCache
from fusar_edge.errors import GateError, InputError
from fusar_edge.manifest import output_file
from fusar_edge.runtime.trt_api import (
    Listener,
    checked,
    constructed,
    is_strongly_typed,
    network_flags,
    parser_error_text,
)


@dataclass(frozen=True)
class PlanResult:
    """What building one plan gave."""

    seconds: float
    plan_bytes: int
    layers: int
    """Of the network as parsed; the plan has fewer, since layers are fused."""
    warm: bool
    """Whether timings of an earlier build were used."""


@dataclass(frozen=True)
class Parsed:
    """A network and what it lives on: the parser owns the weights until the plan is built."""

    graph: str
    builder: Any
    network: Any
    parser: Any
    listener: Any


def build_plan(
    onnx_path: Path,
    profiles: list[Profile],
    out: Path,
    *,
    trt: Any,
    workspace_mib: int = 0,
    timing: TimingCache | None = None,
    progress: Progress | None = None,
    kv_dtype: str = "",
    prepare: Callable[[Any], None] = lambda config: None,
    hear: Callable[[str], None] | None = None,
) -> PlanResult:
    """Build `out` from a graph (its external weights beside it); the file appears whole or not at all.

    `workspace_mib` 0: TensorRT's own limit, all the memory there is. `kv_dtype`: the type that the graph's input `past`
    must have, where it has one. `prepare` may change the builder configuration,
    `hear` is told all that TensorRT logs.
    GateError names the node that TensorRT does not build, DeviceError what it could not make.
    """
    start = time.perf_counter()
    parsed = parse(trt, onnx_path, hear)
    check_cache_type(trt, parsed, kv_dtype)
    config = configuration(trt, parsed, profiles, workspace_mib)
    prepare(config)
    monitor = attached_monitor(trt, config, onnx_path.stem, progress)
    with timing.attached(config) if timing else nullcontext(False) as warm:
        plan = serialised(trt, parsed, config, monitor)
    with output_file(out, force=True) as work:
        work.write_bytes(plan)
    seconds = time.perf_counter() - start
    return PlanResult(seconds, plan.nbytes, parsed.network.num_layers, bool(warm))


def parse(trt: Any, onnx_path: Path, hear: Callable[[str], None] | None = None) -> Parsed:
    """Read a graph into a network that keeps its types, where the version can. GateError names what it refuses."""
    listener = Listener(trt, hear)
    builder = constructed(trt.Builder, "a TensorRT builder", listener)
    network = constructed(builder.create_network, "a network", network_flags(trt))
    parser = constructed(trt.OnnxParser, "an ONNX parser", network, listener)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser_error_text(parser.get_error(i)) for i in range(parser.num_errors)]
        told = "; ".join(errors) or " | ".join(listener.errors[-3:]) or "it gives no reason"
        raise GateError(f"{onnx_path}: TensorRT {trt.__version__} refuses it: {told}")
    return Parsed(str(onnx_path), builder, network, parser, listener)


def configuration(trt: Any, parsed: Parsed, profiles: list[Profile], workspace_mib: int = 0) -> Any:
    """A builder configuration with the profiles, the memory limit, detailed layer information and, for 8.6, types."""
    config = constructed(parsed.builder.create_builder_config, "a builder configuration")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if not is_strongly_typed(trt):
        for flag in weak_types(trt, parsed.network):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    for number, profile in enumerate(profiles):
        made = optimisation_profile(parsed.builder, parsed.network, profile, parsed.graph, first=number == 0)
        if config.add_optimization_profile(made) != number:
            raise GateError(f"{parsed.graph}: TensorRT {trt.__version__} refuses profile {number}: {profile}")
    return config


def weak_types(trt: Any, network: Any) -> list[str]:
    """Builder flags that let TensorRT 8.6 use the types that the graph itself has, and no other.

    FP16 for all of a graph would break the vision tower (cosine 0.14 in TensorRT-LLM #3223).
    """
    kinds, types = set(), set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds.add(layer.type)
        types |= {layer.get_output(i).dtype for i in range(layer.num_outputs)}
    return [
        *(["INT8"] if kinds & {trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE} else []),
        *(["FP16"] if trt.DataType.HALF in types else []),
    ]


def serialised(trt: Any, parsed: Parsed, config: Any, monitor: Monitor) -> Any:
    """The plan in host memory. GateError with TensorRT's own words where it cannot be built."""
    with monitor.holding():
        plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        told = " | ".join(parsed.listener.errors[-3:]) or "it gives no reason"
        raise GateError(f"{parsed.graph}: TensorRT {trt.__version__} cannot build it: {told}")
    return checked(plan, "a plan")


def check_cache_type(trt: Any, parsed: Parsed, kv_dtype: str) -> None:
    """InputError where the graph's KV cache is not of the type that the spec says."""
    names = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    inputs = [parsed.network.get_input(i) for i in range(parsed.network.num_inputs)]
    for tensor in inputs:
        if tensor.name == "past" and kv_dtype and names.get(tensor.dtype) != kv_dtype:
            raise InputError(
                f"{parsed.graph}: its KV cache is {names.get(tensor.dtype, tensor.dtype)}, the spec says kv_dtype = "
                f"{kv_dtype!r}: change the spec, or export the graphs with that type"
            )

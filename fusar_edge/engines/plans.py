"""The two plans of a TensorRT bundle, built on the device that will run them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.engines.layers import layer_counts, layer_report
from fusar_edge.engines.monitor import Progress
from fusar_edge.engines.planner import require_room
from fusar_edge.engines.profiles import Profile, decoder_profiles, vision_profiles
from fusar_edge.engines.timing_cache import timing_cache
from fusar_edge.engines.trt_build import build_plan
from fusar_edge.errors import DeviceError, MissingExtraError
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.bundle import DECODER, LAYERS, PLANS, VISION, BundleSettings, PlanFacts
from fusar_edge.runtime.trt_api import DeviceFacts, device_facts, open_tensorrt
from fusar_edge.specs import EngineSpec


@dataclass(frozen=True)
class Target:
    """The GPU of this machine and the TensorRT that builds for it."""

    trt: Any
    facts: DeviceFacts
    prepare: Callable[[Any], None] = lambda config: None
    """May change a builder configuration."""

    def plan_facts(self, spec: EngineSpec) -> PlanFacts:
        return PlanFacts(
            tensorrt=str(self.trt.__version__),
            compute_capability=self.facts.compute_capability,
            gpu=self.facts.name,
            prefill_tokens=spec.prefill_tokens,
            vision_batch=spec.vision_batch,
            kv_dtype=spec.kv_dtype,
            cuda_graphs=spec.cuda_graphs,
        )


def open_target(spec: EngineSpec) -> Target:
    """This machine as the device of `spec`; asked before anything long is done.

    DeviceError without a driver, or where the GPU is of another architecture; MissingExtraError without TensorRT.
    """
    trt = open_tensorrt()
    facts = device_facts()
    if facts.compute_capability != spec.compute_capability:
        raise DeviceError(
            f"spec {spec.name} is for compute capability {spec.compute_capability}, but the GPU of this machine "
            f"({facts.name}) has {facts.compute_capability}, and a plan runs on the architecture that it was built on "
            "alone: build on the device of the spec, or give this machine's own spec"
        )
    return Target(trt, facts)


def check_memory(spec: EngineSpec, graphs: GraphFolder, facts: DeviceFacts) -> None:
    """DeviceError where the planner says that the graphs cannot run here, with what would fit.

    Of a model that is on no shelf it is known only that its weights must fit what is free.
    """
    require_room(graphs, spec, facts.free_bytes)
    weights = sum(path.stat().st_size for path in graphs.path.glob("*.onnx*"))
    if weights > facts.free_bytes:
        raise DeviceError(
            f"the weights of {graphs.path} are {weights >> 20} MiB, but {facts.name} has {facts.free_bytes >> 20} of "
            f"{facts.memory_bytes >> 20} MiB free: stop other programs, or build a smaller model"
        )


def build_plans(
    target: Target,
    graphs: GraphFolder,
    settings: BundleSettings,
    spec: EngineSpec,
    work: Path,
    timing_folder: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write both plans and their layers into `work`; returns the figures of each plan. The decoder comes first."""
    profiles = {
        DECODER: decoder_profiles(settings, spec.prefill_tokens, spec.cache_tokens),
        VISION: vision_profiles(settings, spec.vision_batch),
    }
    figures: dict[str, Any] = {}
    for name, wanted in profiles.items():
        with tempfile.TemporaryDirectory(prefix=".half-", dir=work) as folder:
            source, halved = typed_graph(graphs.path / name, spec, Path(folder))
            figures[PLANS[name]] = _build(target, source, name, wanted, spec, work, timing_folder, progress) | halved
    return figures


def typed_graph(source: Path, spec: EngineSpec, folder: Path) -> tuple[Path, dict[str, int]]:
    """The graph with the types that the spec says: itself, or a copy in `folder` with FP16 parts, and what they are."""
    linears = spec.precision in ("int8-fp16", "fp16")
    if not linears and spec.kv_dtype == "float32":
        return source, {}
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError(
            f"spec {spec.name} asks for FP16 parts, which are written into the graph with onnx: pip install onnx"
        )
    from fusar_edge.engines.half import half_file

    report = half_file(source, folder / source.name, linears=linears)
    return folder / source.name, {"fp16_products": report.attention, "fp16_linears": len(report.linears)}


def _build(
    target: Target,
    source: Path,
    name: str,
    profiles: list[Profile],
    spec: EngineSpec,
    work: Path,
    timing_folder: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    plan = work / PLANS[name]
    result = build_plan(
        source,
        profiles,
        plan,
        trt=target.trt,
        workspace_mib=spec.workspace_mib,
        timing=timing_cache(timing_folder, target.facts, str(target.trt.__version__), sha256_file(source)),
        progress=progress,
        kv_dtype=spec.kv_dtype,
        prepare=target.prepare,
    )
    report = layer_report(target.trt, plan.read_bytes())
    (work / LAYERS[name]).write_text(report, encoding="utf-8")
    return {
        "seconds": round(result.seconds, 3),
        "plan_bytes": result.plan_bytes,
        "network_layers": result.layers,
        "timings_reused": result.warm,
        **layer_counts(report),
    }

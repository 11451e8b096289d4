"""How far each stage is from what the machine could do: work from the model's shape, times as measured.

Work is counted as fusar_edge.engines.roofline counts it. Limits: of a known device its data sheet's
(engines/NAME.toml); of any other machine what NumPy reaches on it, which is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from fusar_edge.bench.observations import Observation, measured
from fusar_edge.errors import RecipeError
from fusar_edge.runtime.bundle import Bundle


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a machine."""

    gflops: dict[str, float]
    """Kind of number -> 1e9 operations a second; a multiply-add is two."""
    bandwidth_gb_s: float
    source: str


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stage."""

    stage: str
    ms: float
    """Median, as measured."""
    gop: float
    """1e9 operations."""
    gb: float
    """1e9 bytes to and from memory, if nothing stays in a cache."""
    least_ms: float
    """What the limits allow: the larger of arithmetic and traffic."""
    bound: str
    """memory | arithmetic"""

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.gop / self.gb

    @property
    def gop_s(self) -> float:
        return self.gop / (self.ms / 1e3)


class Roofline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    limits: Limits | None = None
    points: tuple[Point, ...] = ()
    missing: str = ""
    """Why there is none."""


def roofline(bundle: Bundle, observations: Iterable[Observation], device: str, mode: str = "") -> Roofline:
    """Vision, prefix and one decoded token of the scenario `single`, or of the first that ran. `mode`: nvpmodel's."""
    from fusar_edge.engines.memory import fused_format, weight_format
    from fusar_edge.engines.roofline import Work, arithmetic_of, decoder_work, vision_work
    from fusar_edge.engines.shapes import shape_from_recipe
    from fusar_edge.recipes import load_recipe
    from fusar_edge.specs import ModelRecipe

    settings = bundle.settings
    try:
        recipe, _ = load_recipe("export", settings.name, ModelRecipe)
        shape = shape_from_recipe(recipe, settings.name)
    except RecipeError as problem:
        return Roofline(missing=f"the shape of {settings.name!r} is not known: {problem}")
    graphs = bundle.manifest.figures.get("graphs", {})
    kept = [layer for graph in graphs.values() if isinstance(graph, dict) for layer in graph.get("kept", {})]
    weights = weight_format(settings.precision, kept)
    decoder = weights if settings.fused is None else fused_format(weights)
    kinds = arithmetic_of(weights)
    half = settings.plan is not None and settings.plan.kv_dtype == "float16"
    number = 2 if half else 4
    prefix = settings.cells**2 + 20
    stages: dict[str, tuple[str, Work]] = {
        "vision": ("vision", vision_work(shape, weights, kinds)),
        "prefix": ("prefix", decoder_work(shape, decoder, kinds, prefix, 0, number)),
        "tpot": ("one token", decoder_work(shape, decoder, kinds, 1, prefix + 40, number)),
    }
    chosen = list(observations)
    scenario = next((one.scenario for one in chosen if one.part == "vision" and not one.warm_up), "")
    limits = limits_of(device, mode)
    points = []
    for part, (name, work) in stages.items():
        times = [one.ms for one in measured(chosen, scenario, part)]
        if times:
            points.append(_point(name, float(np.median(times)), work.bytes, work.macs, limits))
    return Roofline(limits=limits, points=tuple(points))


def _point(stage: str, ms: float, traffic: float, macs: Mapping[Any, float], limits: Limits) -> Point:
    gop = sum(2 * count for count in macs.values()) / 1e9
    fallback = min(limits.gflops.values())
    compute_ms = sum(2 * count / 1e9 / limits.gflops.get(kind, fallback) for kind, count in macs.items()) * 1e3
    memory_ms = traffic / 1e9 / limits.bandwidth_gb_s * 1e3
    return Point(
        stage=stage,
        ms=ms,
        gop=gop,
        gb=traffic / 1e9,
        least_ms=max(compute_ms, memory_ms),
        bound="memory" if memory_ms > compute_ms else "arithmetic",
    )


def limits_of(device: str, mode: str = "") -> Limits:
    """Of the spec whose board this is (its name's words are in the board's), else measured here, in about a second."""
    from fusar_edge.recipes import load_recipe, recipe_names
    from fusar_edge.specs import EngineSpec

    words = set(device.lower().replace("-", " ").split())
    for name in recipe_names("engines"):
        spec, _ = load_recipe("engines", name, EngineSpec)
        marks = [mark for mark in name.split("-") if not mark.endswith("gb")]
        if spec.hardware and all(mark in words for mark in marks):
            h = spec.hardware
            flops = {"int8": h.int8_tops * 1e3, "float16": h.fp16_tflops * 1e3, "float32": h.fp16_tflops * 5e2}
            other = f"; the board runs in {mode}, which may allow less" if mode and mode != h.power_mode else ""
            return Limits(flops, h.bandwidth_gb_s, f"engines/{name}.toml: {h.power_mode}, {h.gpu_clock_mhz} MHz{other}")
    return measured_limits()


def measured_limits() -> Limits:
    """Best of several: FP32 product of 512 x 512 matrices, and a copy of 64 MiB (read and written)."""
    a = np.random.default_rng(0).random((512, 512), np.float32)
    source = np.ones(1 << 23, np.float64)
    target = np.empty_like(source)
    gflops = max(2 * 512**3 / _seconds(lambda: a @ a) / 1e9 for _ in range(8))
    bandwidth = max(2 * source.nbytes / _seconds(lambda: np.copyto(target, source)) / 1e9 for _ in range(4))
    return Limits(
        {"float32": gflops},
        bandwidth,
        "measured here with NumPy: FP32 products by its BLAS, a copy of 64 MiB. INT8 kernels can go above the first, "
        "and what fits the caches above the second",
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

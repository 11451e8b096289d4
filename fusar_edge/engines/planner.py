"""Does a model fit a device, and how fast might it be: `fusar-edge plan SPEC --model RECIPE`. No torch.

The heart: shape of the recipe, weight format, memory, times; `require_fit` refuses what cannot be, with what would fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import msgspec

from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.engines.memory import MIB, Item, MemoryPlan, WeightFormat, plan_memory, weight_format
from fusar_edge.engines.roofline import arithmetic_of, decoder_work, seconds, vision_work
from fusar_edge.engines.shapes import ModelShape, shape_from_recipe
from fusar_edge.errors import DeviceError, RecipeError
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.specs import CalibRecipe, EngineSpec, ModelRecipe, Precision

CALIB = "w8a8-percentile"
PREFIX_TEXT, QUESTION = 16, 30
"""Tokens of the template around an image, and of a question: fusar-tiny's canonical prompts take 22 to 52."""
SHORT_ANSWER, CAPTION = 8, 192
"""Tokens of a count, and of the longest caption (fusar_edge.runtime.bundle.MAX_NEW_TOKENS)."""


@dataclass(frozen=True)
class Times:
    """Milliseconds by the roofline; an estimate, nothing was measured."""

    vision_ms: float
    """One tile."""
    prefill_ms: float
    """Image and template, then a question after them."""
    decode_ms: float
    """One token, the cache half full."""
    latency_goal_ms: float | None

    @property
    def tile_ms(self) -> float:
        """One tile looked at and one question answered in 8 tokens; the prefill gives the first of them."""
        return self.vision_ms + self.prefill_ms + (SHORT_ANSWER - 1) * self.decode_ms

    @property
    def caption_ms(self) -> float:
        return self.vision_ms + self.prefill_ms + (CAPTION - 1) * self.decode_ms


@dataclass(frozen=True)
class Plan:
    """One model on one device."""

    spec: EngineSpec
    shape: ModelShape
    weights: WeightFormat
    memory: MemoryPlan
    times: Times | None
    """None for a device whose rates the spec does not have."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be, or None."""
        largest_prefix = self.shape.tokens + PREFIX_TEXT
        if self.spec.prefill_tokens < largest_prefix or self.spec.cache_tokens < largest_prefix + QUESTION:
            return (
                f"an image and its prompt are {largest_prefix + QUESTION} tokens; prefill_tokens is "
                f"{self.spec.prefill_tokens}, cache_tokens {self.spec.cache_tokens}"
            )
        if not self.memory.fits:
            return f"it needs {self.memory.needed // MIB:,} MiB, and may use {self.memory.available // MIB:,} MiB"
        return None

    @property
    def risk(self) -> str | None:
        """What might be needed beside the plan's figures, and does not fit; or None."""
        twice = self.memory.bytes_of("decoder weights")
        over = self.memory.needed + twice - self.memory.available
        if self.spec.engine != "tensorrt" or self.problem or over <= 0:
            return None
        return (
            f"if TensorRT keeps the decoder's weights once for each of its two profiles, as TensorRT-RTX does, it "
            f"needs {twice // MIB:,} MiB more: {over // MIB:,} MiB too many"
        )

    @property
    def build_warning(self) -> str | None:
        """What building on the device lacks, or None."""
        if self.spec.engine != "tensorrt" or self.memory.builds:
            return None
        low, high = (size // MIB for size in self.memory.build_peak)
        return (
            f"building takes {low:,} to {high:,} MiB at its peak (an estimate), and the device has "
            f"{self.memory.available // MIB:,} MiB for it; swap helps the processor's part of that alone"
        )


def plan(
    spec_name: str,
    model_name: str,
    *,
    precision: Precision | None = None,
    calib: str = CALIB,
    baked: bool = False,
) -> Plan:
    """Plan a recipe of export/ on a spec of engines/. RecipeError for what is not on the shelves.

    `precision`: instead of the spec's; `calib`: the recipe whose [keep] names the layers that stay out of INT8;
    `baked`: anchors from a baked table, no TLM MLP in the engine. A model that does not fit is planned all the same.
    """
    spec, _ = load_recipe("engines", spec_name, EngineSpec)
    model, _ = load_recipe("export", model_name, ModelRecipe)
    keep = load_recipe("calib", calib, CalibRecipe)[0].keep
    if precision is not None and precision not in get_args(Precision):
        raise RecipeError(f"precision {precision!r} is none of: {', '.join(get_args(Precision))}")
    shape = shape_from_recipe(model, model_name)
    return plan_shape(shape.baked() if baked else shape, spec, weight_format(precision or spec.precision, keep))


def plan_shape(shape: ModelShape, spec: EngineSpec, weights: WeightFormat) -> Plan:
    return Plan(spec, shape, weights, plan_memory(shape, spec, weights), estimated_times(shape, spec, weights))


def estimated_times(shape: ModelShape, spec: EngineSpec, weights: WeightFormat) -> Times | None:
    if spec.hardware is None:
        return None
    hardware, kinds, prefix = spec.hardware, arithmetic_of(weights), shape.tokens + PREFIX_TEXT
    each = 2 if spec.kv_dtype == "float16" else 4

    def decoder_ms(new: int, past: int) -> float:
        return 1000 * seconds(decoder_work(shape, weights, kinds, new, past, each), hardware)

    return Times(
        vision_ms=1000 * seconds(vision_work(shape, weights, kinds), hardware),
        prefill_ms=decoder_ms(prefix, 0) + decoder_ms(QUESTION, prefix),
        decode_ms=decoder_ms(1, spec.cache_tokens // 2),
        latency_goal_ms=spec.latency_goal_ms,
    )


# What would fit -----------------------------------------------------------------------------------------------------


def require_fit(planned: Plan) -> None:
    """DeviceError that says what would fit, where the plan does not."""
    if planned.problem:
        fitting = what_fits(planned)
        advice = "; ".join(fitting) if fitting else "nothing on the shelves does"
        raise DeviceError(
            f"{planned.shape.name} ({planned.weights.name}) does not fit {planned.spec.name}: {planned.problem}. "
            f"What would fit: {advice}"
        )


def what_fits(planned: Plan) -> list[str]:
    """Changes that make it fit, the least first; else, and besides, smaller models here and devices for this one."""
    changes = _changes(planned)
    here = [f"here, with {' and '.join(changes)}"] if changes else []
    models = []
    for name in recipe_names("export"):
        shape = shape_from_recipe(load_recipe("export", name, ModelRecipe)[0], name)
        smaller = shape.parameters < planned.shape.parameters
        if smaller and plan_shape(shape, planned.spec, planned.weights).problem is None:
            models.append((shape.parameters, name))
    devices = []
    for name in recipe_names("engines"):
        spec, _ = load_recipe("engines", name, EngineSpec)
        if spec.name != planned.spec.name and plan_shape(planned.shape, spec, planned.weights).problem is None:
            devices.append((spec.memory_mib, name))
    here += [f"here, {name}" for _, name in sorted(models, reverse=True)]
    return here + ([f"this model on {', '.join(name for _, name in sorted(devices))}"] if devices else [])


Change = Callable[[ModelShape, EngineSpec, WeightFormat], tuple[ModelShape, EngineSpec, WeightFormat]]


def _changes(planned: Plan) -> list[str]:
    """The first few that are enough together, without those that turn out not to be needed."""
    changes = _possible_changes(planned)
    chosen: list[str] = []
    for name in changes:
        chosen.append(name)
        if _changed(planned, [changes[c] for c in chosen]).problem is None:
            break
    else:
        return []
    for name in list(chosen):
        fewer = [other for other in chosen if other != name]
        if _changed(planned, [changes[c] for c in fewer]).problem is None:
            chosen = fewer
    return chosen


def _possible_changes(planned: Plan) -> dict[str, Change]:
    """What an engineer could change, the least painful first: name -> change."""
    prefix = planned.shape.tokens + PREFIX_TEXT
    tokens, prefill = (-(-size // 64) * 64 for size in (prefix + QUESTION + CAPTION, prefix))
    sizes = {"cache_tokens": tokens, "prefill_tokens": prefill}
    changes: dict[str, Change] = {
        f"cache_tokens {tokens}, prefill_tokens {prefill}": lambda shape, spec, weights: (
            shape,
            msgspec.structs.replace(spec, **sizes),
            weights,
        )
    }
    if planned.spec.vision_batch > 1:
        changes["vision_batch 1"] = lambda shape, spec, weights: (
            shape,
            msgspec.structs.replace(spec, vision_batch=1),
            weights,
        )
    if planned.shape.tlm_hidden and not planned.shape.baked_rank:
        changes["baked anchors (`anchors bake`, `export --anchors`)"] = lambda shape, spec, weights: (
            shape.baked(),
            spec,
            weights,
        )
    if planned.weights.name == "int8":
        changes["precision int8-fp16 (`calibrate` writes the rest in float32 so far)"] = lambda shape, spec, weights: (
            shape,
            spec,
            weight_format("int8-fp16", weights.keep),
        )
    if planned.weights.name in ("int8", "int8-fp16") and planned.weights.keep:
        changes["every layer in INT8 (a calib recipe without [keep], accuracy to be measured)"] = (
            lambda shape, spec, weights: (shape, spec, replace(weights, keep=()))
        )
    return changes


def _changed(planned: Plan, changes: list[Change]) -> Plan:
    parts = planned.shape, planned.spec, planned.weights
    for change in changes:
        parts = change(*parts)
    return plan_shape(*parts)


# For the builder ----------------------------------------------------------------------------------------------------


def plan_graphs(graphs: GraphFolder, spec: EngineSpec) -> Plan | None:
    """Plan of graphs that are at hand: weights are their files' sizes, the rest is as for their recipe.

    None where the recipe they were exported from (`settings.name`) is not on the shelf: scratch is unknown then.
    """
    name = graphs.settings.name
    if name not in recipe_names("export"):
        return None
    shape = shape_from_recipe(load_recipe("export", name, ModelRecipe)[0], name)
    if graphs.settings.anchors.form == "baked":
        shape = shape.baked(graphs.settings.anchors.bands)
    keep = [layer for graph in graphs.manifest.figures.get("graphs", {}).values() for layer in graph.get("kept", ())]
    planned = plan_shape(shape, spec, weight_format("int8" if graphs.precision == "int8" else "fp32", keep))
    vision, decoder = (sum(p.stat().st_size for p in graphs.path.glob(f"{g}.onnx*")) for g in ("vision", "decoder"))
    files = {
        "vision weights": Item("vision weights", vision, "counted, files"),
        "decoder weights": Item("decoder weights", decoder, "counted, files"),
        "embedding": Item("embedding", 0, "in the decoder's file"),
    }
    items = tuple(files.get(item.name, item) for item in planned.memory.items)
    return replace(planned, memory=replace(planned.memory, items=items))


def require_room(graphs: GraphFolder, spec: EngineSpec, free_bytes: int | None = None) -> Plan | None:
    """DeviceError where graphs do not fit `spec`, or what is free now (`free_bytes`); else their plan, if known."""
    planned = plan_graphs(graphs, spec)
    if planned is None:
        return None
    if free_bytes is not None:
        available = min(free_bytes, planned.memory.available)
        planned = replace(planned, memory=replace(planned.memory, available=available))
    require_fit(planned)
    return planned

"""What others measured on the same devices, and how well the roofline foretells it.

Figures: TensorRT-Edge-LLM v0.10, page "Performance Benchmarks" (JetPack 7.2, TensorRT 10.16, batch 1). The models are
not ours: their weights are 4-bit, their runtime is C++ with fused attention. What is taken from them is the share of a
peak that is reached, one for arithmetic and one for memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log
from typing import Literal

from fusar_edge.engines.memory import WeightFormat
from fusar_edge.engines.roofline import Arithmetic, Efficiency, decoder_work, seconds, vision_work
from fusar_edge.engines.shapes import PUBLISHED_BASES, Language, ModelShape, Tower
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import EngineSpec

Phase = Literal["vision", "prefill", "decode"]
PEAK = Efficiency(1.0, 1.0)

# Shapes of Qwen/Qwen3-VL-8B-, 4B- and 2B-Instruct, written down without their config.json at hand: not verified. Every
# block of their towers attends to the whole image.
_LARGE = Tower(27, 1152, 16, 4304, 0, 27, 0, patch_values=16 * 16 * 3 * 2, gated=False, mergers=4)
_SMALL = Tower(24, 1024, 16, 4096, 0, 24, 0, patch_values=16 * 16 * 3 * 2, gated=False, mergers=4)
_QWEN25 = Tower(32, 1280, 16, 3420, 0, 4, 0, patch_values=14 * 14 * 3 * 2)
MODELS = {
    "Qwen3-VL-8B": (_LARGE, Language(4096, 12288, 36, 32, 8, 128, 151936, tied=False, qkv_bias=False)),
    "Qwen3-VL-4B": (_SMALL, Language(2560, 9728, 36, 32, 8, 128, 151936, tied=True, qkv_bias=False)),
    "Qwen3-VL-2B": (_SMALL, Language(2048, 6144, 28, 16, 8, 128, 151936, tied=True, qkv_bias=False)),
    "Qwen2.5-VL-7B": (_QWEN25, PUBLISHED_BASES["Qwen/Qwen2.5-VL-7B-Instruct"][1]),
}
# AWQ: a scale of 16 bits and a zero of 4 for 128 weights; products in FP16; head and tower in FP16.
# NVFP4: a scale of 8 bits for 16 weights; products in FP4. Its head is counted as NVFP4 too: with one in FP16, the
# published rate would be more than the memory delivers.
FORMATS = {
    "INT4 AWQ": (
        WeightFormat("INT4 AWQ", 4 + 20 / 128, 0, 2, ("vision.*", "decoder.lm_head")),
        Arithmetic("float16", "float16", fused=True),
    ),
    "NVFP4": (WeightFormat("NVFP4", 4.5, 0, 2, ("vision.*",)), Arithmetic("fp4", "float16", fused=True)),
}
WINDOW_PATCHES = 64
"""Patches in a window of Qwen2.5-VL."""


@dataclass(frozen=True)
class Row:
    """One published figure."""

    device: str
    """Spec on the shelf engines/."""
    model: str
    format: str
    phase: Phase
    tokens: int
    """Visual tokens, prompt tokens, or (decode) tokens in the cache."""
    published_ms: float


def _decode(device: str, model: str, weights: str, tokens_per_s: float) -> Row:
    return Row(device, model, weights, "decode", 2048, 1000 / tokens_per_s)


ROWS = (
    Row("jetson-thor", "Qwen2.5-VL-7B", "NVFP4", "prefill", 2048, 83.1),
    _decode("jetson-thor", "Qwen2.5-VL-7B", "NVFP4", 59.2),
    Row("jetson-thor", "Qwen2.5-VL-7B", "NVFP4", "vision", 349, 23.4),
    Row("jetson-agx-orin-64gb", "Qwen3-VL-8B", "INT4 AWQ", "prefill", 2048, 1388),
    Row("jetson-agx-orin-64gb", "Qwen3-VL-8B", "INT4 AWQ", "prefill", 292, 178),
    _decode("jetson-agx-orin-64gb", "Qwen3-VL-8B", "INT4 AWQ", 30.6),
    Row("jetson-agx-orin-64gb", "Qwen3-VL-8B", "INT4 AWQ", "vision", 265, 53.0),
    Row("jetson-agx-orin-64gb", "Qwen3-VL-4B", "INT4 AWQ", "prefill", 2048, 758),
    _decode("jetson-agx-orin-64gb", "Qwen3-VL-4B", "INT4 AWQ", 50.8),
    Row("jetson-agx-orin-64gb", "Qwen3-VL-2B", "INT4 AWQ", "prefill", 2048, 298),
    _decode("jetson-agx-orin-64gb", "Qwen3-VL-2B", "INT4 AWQ", 88.7),
    Row("jetson-orin-nx-16gb", "Qwen3-VL-8B", "INT4 AWQ", "prefill", 2048, 3106),
    _decode("jetson-orin-nx-16gb", "Qwen3-VL-8B", "INT4 AWQ", 17.4),
    Row("jetson-orin-nx-16gb", "Qwen3-VL-8B", "INT4 AWQ", "vision", 265, 110),
    Row("jetson-orin-nano-8gb", "Qwen3-VL-2B", "INT4 AWQ", "prefill", 2048, 1017),
    _decode("jetson-orin-nano-8gb", "Qwen3-VL-2B", "INT4 AWQ", 32.3),
    Row("jetson-orin-nano-8gb", "Qwen3-VL-2B", "INT4 AWQ", "vision", 265, 141),
)


def predicted_ms(row: Row, efficiency: Efficiency) -> float:
    spec, _ = load_recipe("engines", row.device, EngineSpec)
    assert spec.hardware is not None, f"{row.device} has no [hardware]"
    tower, language = MODELS[row.model]
    weights, kinds = FORMATS[row.format]
    if row.phase == "vision":
        patches = 4 * row.tokens
        tower = replace(tower, patches=patches, window_pairs=patches * WINDOW_PATCHES)
        work = vision_work(ModelShape(row.model, tower, language), weights, kinds)
    else:
        new, past = (row.tokens, 0) if row.phase == "prefill" else (1, row.tokens)
        work = decoder_work(ModelShape(row.model, tower, language), weights, kinds, new, past, cache_bytes=2)
    return 1000 * seconds(work, spec.hardware, efficiency)


def fitted(rows: tuple[Row, ...] = ROWS) -> Efficiency:
    """Two shares over all rows: geometric means of (time at the peak / published time), arithmetic of prefill and
    vision, bandwidth of decode."""
    shares = {row: predicted_ms(row, PEAK) / row.published_ms for row in rows}
    return Efficiency(
        compute=_geometric_mean([share for row, share in shares.items() if row.phase != "decode"]),
        bandwidth=_geometric_mean([share for row, share in shares.items() if row.phase == "decode"]),
    )


def _geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


@dataclass(frozen=True)
class Compared:
    """Prediction beside publication."""

    row: Row
    share: float
    """Of the peak that this row alone reaches."""
    predicted_ms: float
    error: float
    """predicted / published - 1, with the shares of all rows."""
    error_left_out: float
    """The same, with the shares of all other rows."""


def compared() -> list[Compared]:
    efficiency = fitted()
    result = []
    for row in ROWS:
        predicted = predicted_ms(row, efficiency)
        others = fitted(tuple(other for other in ROWS if other != row))
        left_out = predicted_ms(row, others) / row.published_ms - 1
        share = predicted_ms(row, PEAK) / row.published_ms
        result.append(Compared(row, share, predicted, predicted / row.published_ms - 1, left_out))
    return result

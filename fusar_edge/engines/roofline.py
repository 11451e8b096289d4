"""Time of vision, prefill and decode from a device's rates: the larger of arithmetic and memory traffic.

    seconds = max(sum of 2 macs / (rate * COMPUTE), bytes / (bandwidth * BANDWIDTH))

The two shares of the peak were fitted to what others published for other models on the same devices
(fusar_edge.engines.published, docs/devices.md); nothing of ours was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusar_edge.engines.memory import WeightFormat, decoder_weights, vision_weights
from fusar_edge.engines.shapes import Linear, ModelShape, decoder_linears, vision_linears
from fusar_edge.specs import HardwareSpec

Kind = Literal["fp4", "int8", "float16", "float32"]
"""Type that a product runs in."""


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that are reached."""

    compute: float
    bandwidth: float


FITTED = Efficiency(compute=0.46, bandwidth=0.73)
"""`published.fitted()`, rounded; a test holds it to that."""


@dataclass
class Work:
    """Arithmetic and memory traffic of one run of a graph."""

    bytes: float = 0.0
    macs: dict[Kind, float] = field(default_factory=dict)

    def multiply(self, kind: Kind, macs: float) -> None:
        self.macs[kind] = self.macs.get(kind, 0.0) + macs


@dataclass(frozen=True)
class Arithmetic:
    """In which type the products of a weight format run."""

    quantised: Kind
    rest: Kind
    fused: bool = False
    """Kernels that keep activations and scores on the chip (others' runtimes): weights and cache are all that moves.
    Ours are counted as decomposed, as the graphs are: TensorRT may fuse them, nothing says that it does."""


def arithmetic_of(weights: WeightFormat) -> Arithmetic:
    return Arithmetic("int8", "float32" if weights.rest_bytes == 4 else "float16")


def seconds(work: Work, hardware: HardwareSpec, efficiency: Efficiency = FITTED) -> float:
    rates = {
        "fp4": hardware.fp4_tflops or hardware.fp16_tflops,
        "int8": hardware.int8_tops,
        "float16": hardware.fp16_tflops,
        "float32": hardware.fp16_tflops / 2,
    }
    compute = sum(2 * macs / (rates[kind] * 1e12) for kind, macs in work.macs.items()) / efficiency.compute
    return max(compute, work.bytes / (hardware.bandwidth_gb_s * 1e9) / efficiency.bandwidth)


def vision_work(shape: ModelShape, weights: WeightFormat, kinds: Arithmetic, batch: int = 1) -> Work:
    """`batch` images. Traffic: weights once, each layer's input and output, scores written and read twice."""
    tower, number = shape.tower, weights.rest_bytes
    rows = {"patches": tower.patches, "tokens": shape.tokens, "anchors": shape.anchors}
    work = Work(float(vision_weights(shape, weights)))
    for linear in vision_linears(shape):
        _add_linear(work, linear, batch * rows[linear.rows], weights, kinds)
    pairs = tower.full_blocks * tower.patches**2 + (tower.depth - tower.full_blocks) * tower.window_pairs
    work.multiply(kinds.rest, 2.0 * batch * tower.hidden * pairs)
    if not kinds.fused:
        work.bytes += 4.0 * batch * tower.heads * pairs * number
    if shape.tlm_hidden:
        spread = shape.tokens * shape.anchors
        work.multiply(kinds.rest, batch * spread * (tower.patches + 2.0 * shape.language.hidden))
    return work


def decoder_work(
    shape: ModelShape, weights: WeightFormat, kinds: Arithmetic, new: int, past: int, cache_bytes: int
) -> Work:
    """`new` tokens after `past` ones: prefill, or decode where `new` is 1. `cache_bytes`: of a number of the cache.

    The embedding is looked up, not read. Blocked scores are computed too: no kernel is assumed that skips them.
    """
    text, number = shape.language, weights.rest_bytes
    work = Work(float(decoder_weights(shape, weights)))
    for linear in decoder_linears(shape):
        _add_linear(work, linear, 1 if linear.rows == "last" else new, weights, kinds)
        if linear.name == "decoder.lm_head" and text.tied and not weights.quantised(linear):
            work.bytes += weights.bytes_of(linear)  # the embedding, which `decoder_weights` leaves out
    pairs = new * (past + new)
    work.multiply(kinds.rest, 2.0 * text.layers * text.heads * text.head_dim * pairs)
    work.bytes += text.cache_values * (past + new) * cache_bytes
    if not kinds.fused:
        work.bytes += 4.0 * text.layers * text.heads * pairs * number
    return work


def _add_linear(work: Work, linear: Linear, rows: int, weights: WeightFormat, kinds: Arithmetic) -> None:
    quantised = weights.quantised(linear)
    work.multiply(kinds.quantised if quantised else kinds.rest, rows * linear.inputs * linear.outputs)
    if kinds.fused:
        return
    read = 1 if quantised and kinds.quantised == "int8" else weights.rest_bytes
    work.bytes += rows * (linear.inputs * read + linear.outputs * weights.rest_bytes)

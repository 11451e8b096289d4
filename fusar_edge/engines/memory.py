"""How much memory a model takes on a device: what is counted, what is estimated by a formula, what is assumed.

Counted: weights, scales, constants, KV cache (tests: within 1 % of the files of the default bundle). By formula:
scratch, the largest set of tensors that live at once if no kernel fuses attention; a test holds it against what
TensorRT-RTX asks for. Assumed: the runtime's own memory, and the peak of building. A plan is counted with its weights
once; TensorRT-RTX 1.7 keeps the decoder's once for each profile (875 MiB for 458 of one layer at 7B width), and whether
TensorRT does is not known: see Plan.risk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from fusar_edge.engines.fused import BLOCK
from fusar_edge.engines.shapes import Linear, ModelShape, decoder_linears, vision_linears
from fusar_edge.specs import EngineSpec

MIB = 1 << 20
ANCHOR_CACHE = 64 * MIB
"""Decoded chunks: the default of fusar_edge.anchors.table.AnchorTable.open."""
LARGEST_ANCHORS = 1024
"""What the optimisation profile of vision allows (fusar_edge.engines.compile_gate)."""
RUNTIME = {"tensorrt": 900 * MIB, "onnxruntime": 150 * MIB}
"""Python with NumPy, rasterio and the engine's libraries; CUDA context and TensorRT's kernels. Assumed for tensorrt
(TensorRT logs about 500 MiB for its builder's kernels and 300 MiB for a context on a V100, TensorRT-LLM issue 577; not
measured on a Jetson); for onnxruntime what is left of `fusar-edge interpret default` (192 MiB resident,
x86-64, no table) without its graphs and their scratch, rounded up."""
BUILD_FACTOR = (3, 4)
"""Peak of building over the weights of the larger graph (TensorRT-Edge-LLM issue 30: 3 to 4 bytes a parameter)."""


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of a graph are stored."""

    name: str
    bits: float
    """Of a weight in a quantised layer, scales of groups included."""
    channel_bytes: int
    """Scale and zero point of an output channel of a quantised layer."""
    rest_bytes: int
    """Of every other number: kept layers, biases, norms, constants, activations."""
    keep: tuple[str, ...] = ()
    """Patterns (fnmatch) of the layers that are not quantised; `*`: none is."""

    def quantised(self, linear: Linear) -> bool:
        return not any(fnmatchcase(linear.name, pattern) for pattern in self.keep)

    def bytes_of(self, linear: Linear) -> int:
        weights = linear.inputs * linear.outputs
        bias = linear.outputs * self.rest_bytes if linear.bias else 0
        if not self.quantised(linear):
            return weights * self.rest_bytes + bias
        return int(weights * self.bits / 8) + linear.outputs * self.channel_bytes + bias


def weight_format(precision: str, keep: Iterable[str]) -> WeightFormat:
    """`precision` as in EngineSpec; `keep`: the patterns of a calib recipe, for the INT8 ones."""
    rest = 4 if precision in ("int8", "fp32") else 2
    if precision in ("int8", "int8-fp16"):
        return WeightFormat(precision, 8, 5, rest, tuple(keep))
    return WeightFormat(precision, 8.0 * rest, 0, rest, ("*",))


def fused_format(weights: WeightFormat) -> WeightFormat:
    """Of a fused decoder: no linear is kept out of INT8, and each block has a scale."""
    return weights if "*" in weights.keep else replace(weights, bits=8 + 32 / BLOCK, channel_bytes=0, keep=())


@dataclass(frozen=True)
class Item:
    """One line of the memory table."""

    name: str
    bytes: int
    basis: str
    """Where the number comes from."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one process needs, and what the device lets it have."""

    items: tuple[Item, ...]
    available: int
    """Bytes that the process may use."""
    total: int | None
    """Bytes of the device; None where the spec does not say."""
    build_peak: tuple[int, int]
    """Bytes while the larger graph is built, low and high."""

    @property
    def needed(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def builds(self) -> bool:
        """The low estimate of the peak of building fits."""
        return self.build_peak[0] <= self.available

    def bytes_of(self, name: str) -> int:
        return next(item.bytes for item in self.items if item.name == name)


def plan_memory(shape: ModelShape, spec: EngineSpec, weights: WeightFormat) -> MemoryPlan:
    """Everything that lives in memory while tiles are interpreted."""
    decoder_format = fused_format(weights) if spec.decoder == "fused" else weights
    vision, decoder = vision_weights(shape, weights), decoder_weights(shape, decoder_format)
    table = embedding_bytes(shape, weights)
    cache = shape.language.cache_values * spec.cache_tokens * (2 if spec.kv_dtype == "float16" else 4)
    anchors = f"baked, rank {shape.baked_rank}" if shape.baked_rank else "with TLM's MLP"
    items = (
        Item("vision weights", vision, f"counted, {weights.name}, {anchors}"),
        Item("decoder weights", decoder, f"counted, {weights.name}"),
        Item("embedding", table, "counted"),
        Item("KV cache", cache, f"counted, {spec.cache_tokens} tokens, {spec.kv_dtype}"),
        Item(
            "vision scratch", vision_scratch(shape, spec.vision_batch, weights), f"formula, batch {spec.vision_batch}"
        ),
        Item("decoder scratch", decoder_scratch(shape, spec, weights), f"formula, {spec.prefill_tokens} new tokens"),
        Item("anchors", ANCHOR_CACHE, "counted, decoded chunks of a table"),
        Item("runtime", RUNTIME[spec.engine], "assumed" if spec.engine == "tensorrt" else "measured, rounded up"),
    )
    largest = max(vision, decoder + table)
    low, high = ((factor * largest + RUNTIME[spec.engine]) for factor in BUILD_FACTOR)
    total = spec.hardware.memory_mib * MIB if spec.hardware else None
    return MemoryPlan(items, spec.memory_mib * MIB, total, (low, high))


def vision_weights(shape: ModelShape, weights: WeightFormat) -> int:
    """Layers, norms, rotary tables (one pair for all blocks, [P, 2, D] cosines and sines), TLM's resize matrix."""
    tower, number = shape.tower, weights.rest_bytes
    norms = (2 * tower.depth + 1) * tower.hidden
    head_dim = tower.hidden // tower.heads
    rotary = 2 * 2 * tower.patches * head_dim
    resize = tower.patches * shape.tokens if shape.tlm_hidden else 0
    mean = 2 * shape.language.hidden if shape.baked_rank else 0
    return sum(map(weights.bytes_of, vision_linears(shape))) + (norms + rotary + resize + mean) * number


def decoder_weights(shape: ModelShape, weights: WeightFormat) -> int:
    """Layers, head and norms. A head that shares the embedding and is not quantised is counted with the embedding."""
    text = shape.language
    linears = [x for x in decoder_linears(shape) if not (_shared_head(shape, weights) and x.name == "decoder.lm_head")]
    norms = (2 * text.layers + 1) * text.hidden
    return sum(map(weights.bytes_of, linears)) + norms * weights.rest_bytes


def embedding_bytes(shape: ModelShape, weights: WeightFormat) -> int:
    """FP16 beside INT8 layers (fusar_edge.calib.qdq.half_embeddings); else as the rest."""
    each = weights.rest_bytes if "*" in weights.keep else 2
    return shape.language.vocab * shape.language.hidden * each


def _shared_head(shape: ModelShape, weights: WeightFormat) -> bool:
    head = Linear("decoder.lm_head", shape.language.hidden, shape.language.vocab, "last")
    return shape.language.tied and not weights.quantised(head)


def vision_scratch(shape: ModelShape, batch: int, weights: WeightFormat) -> int:
    """Inputs and outputs, and the larger of these: attention of one full block (residual, queries, keys, values, two
    of them rotated, and scores [heads, P, P] as a product, scaled, and after the softmax), the gated MLP, TLM."""
    tower, width = shape.tower, shape.language.hidden
    patches, tokens = tower.patches, shape.tokens
    pairs = patches * patches if tower.full_blocks else tower.window_pairs
    attention = patches * tower.hidden * 6 + 3 * tower.heads * pairs
    mlp = patches * (tower.hidden + 3 * tower.intermediate)
    per_anchor = shape.baked_rank or shape.tlm_hidden + 2 * width
    anchors = max(shape.anchors, LARGEST_ANCHORS)
    tlm = anchors * (per_anchor + patches) + 3 * tokens * width if shape.tlm_hidden else 0
    pixels = patches * tower.patch_values
    return batch * (max(attention, mlp, tlm) + pixels + tokens * width) * weights.rest_bytes


def decoder_scratch(shape: ModelShape, spec: EngineSpec, weights: WeightFormat) -> int:
    """One scratch for both contexts, of the larger: prefill of N tokens into a full cache of T. Residual, queries,
    keys and values of one layer over T, scores [heads, N, T] as in vision, or the gated MLP; and the
    visual tokens, new rows of the cache and logits."""
    text, new, all_tokens = shape.language, spec.prefill_tokens, spec.cache_tokens
    query, key = text.heads * text.head_dim, text.kv_heads * text.head_dim
    attention = new * (text.hidden + 2 * query) + 2 * 2 * all_tokens * key + 3 * text.heads * new * all_tokens
    mlp = new * (text.hidden + 3 * text.intermediate)
    outside = shape.tokens * text.hidden + new * text.cache_values + text.vocab
    return (max(attention, mlp) + outside) * weights.rest_bytes

"""Memory that a stage of training takes on each GPU, by strategy: `fusar-edge plan SPEC --model RECIPE --train STAGE`.

Counted: weights, gradients, AdamW's moments (tests: to the parameter, on a real model with PEFT's LoRA). By formula:
what the language model keeps for the backward pass (tests: within 2 % of what autograd saves on a small model),
logits, what a strategy gathers. Assumed: CUDA context and libraries, DeepSpeed's buffer. Nothing was measured on a GPU.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fusar_edge.engines.memory import MIB, Item, MemoryPlan
from fusar_edge.engines.planner import PREFIX_TEXT, QUESTION
from fusar_edge.engines.shapes import BANDS, Linear, ModelShape, decoder_linears, shape_from_recipe, vision_linears
from fusar_edge.errors import DeviceError, RecipeError
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import EngineSpec, LoraSpec, ModelRecipe, SftStageSpec, TrainSpec

Strategy = Literal["one process", "ddp", "fsdp", "zero2"]
STRATEGIES: tuple[Strategy, ...] = ("one process", "ddp", "fsdp", "zero2")

CONTEXT = 1024 * MIB
"""CUDA context, cuBLAS, NCCL and what the allocator cannot hand out. Assumed."""
ZERO_BUCKET = 500_000_000
"""Numbers of DeepSpeed's buffer for gradients: its default `reduce_bucket_size`. Assumed to be allocated whole."""
MASTER, MOMENTS = 4, 8
"""Bytes of a trained weight or its gradient in float32, and of AdamW's two moments."""
COLOURS_AND_FRAMES = 6
"""Hugging Face's patch embedding has so many planes where the exported graphs have one."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a stage."""

    layers: int
    """Frozen, of the language model's layers."""
    outside: int
    """Frozen, of everything else: tower, embedding, head, last norm; not TLM."""
    tlm: int
    lora: int
    trained: int
    """Of TLM and LoRA."""


@dataclass(frozen=True)
class TrainingPlan:
    """One stage on one kind of GPU."""

    spec: EngineSpec
    shape: ModelShape
    stage: int
    processes: int
    counts: Counts
    tokens: int
    """Of the longest sequence."""
    checkpointing: bool
    memory: dict[Strategy, MemoryPlan]
    """Of each process."""
    otherwise: dict[Strategy, int]
    """Bytes needed if checkpointing were the other way."""

    @property
    def fitting(self) -> list[Strategy]:
        return [strategy for strategy, memory in self.memory.items() if memory.fits]


def plan_training(spec_name: str, model_name: str, stage: int, processes: int = 4) -> TrainingPlan:
    """Plan stage 1 or 2 of a recipe of export/ on GPUs of a spec of engines/. RecipeError for what is not there."""
    spec, _ = load_recipe("engines", spec_name, EngineSpec)
    recipe, _ = load_recipe("export", model_name, ModelRecipe)
    if spec.hardware is None:
        raise RecipeError(f"{spec_name} is no GPU: training is planned for a spec with [hardware], such as h200")
    shape = shape_from_recipe(recipe, model_name)
    common, settings = recipe.train, recipe.train.stage1 if stage == 1 else recipe.train.stage2
    counts = count_parameters(shape, common.lora, stage, settings)
    total = spec.hardware.memory_mib * MIB
    memory: dict[Strategy, MemoryPlan] = {}
    otherwise: dict[Strategy, int] = {}
    for strategy in STRATEGIES:
        number = 1 if strategy == "one process" else processes
        items = tuple(training_items(shape, counts, common, settings, strategy, number, common.checkpointing))
        memory[strategy] = MemoryPlan(items, spec.memory_mib * MIB, total, (0, 0))
        other = training_items(shape, counts, common, settings, strategy, number, not common.checkpointing)
        otherwise[strategy] = sum(item.bytes for item in other)
    return TrainingPlan(
        spec, shape, stage, processes, counts, settings.max_tokens, common.checkpointing, memory, otherwise
    )


def require_training_fit(planned: TrainingPlan) -> None:
    """DeviceError where no strategy fits."""
    if not planned.fitting:
        least = min(planned.memory, key=lambda strategy: planned.memory[strategy].needed)
        memory = planned.memory[least]
        raise DeviceError(
            f"training stage {planned.stage} of {planned.shape.name} does not fit {planned.spec.name}: the least, "
            f"{least}, needs {memory.needed // MIB:,} MiB of each GPU, which has {memory.available // MIB:,}; fewer "
            'max_tokens, `checkpointing = true` and frozen = "bfloat16" in the recipe, and more --processes need less'
        )


def count_parameters(shape: ModelShape, lora: LoraSpec, stage: int, settings: SftStageSpec) -> Counts:
    text, tower = shape.language, shape.tower
    layers = [x for x in decoder_linears(shape) if x.name != "decoder.lm_head"]
    patches = COLOURS_AND_FRAMES * tower.patch_values * tower.hidden  # and no bias
    vision = [x for x in vision_linears(shape) if x.name.startswith("vision.") and x.name != "vision.patch_embed"]
    norms = (2 * tower.depth + tower.mergers) * tower.hidden
    table = text.vocab * text.hidden * (1 if text.tied else 2)
    tlm = sum(_parameters(x) for x in vision_linears(shape) if x.name.startswith("tlm."))
    with_lora = stage == 2 or settings.reading == "official"
    added = sum(lora.r * (x.inputs + x.outputs) for x in _with_lora(layers, lora)) if with_lora else 0
    return Counts(
        layers=sum(map(_parameters, layers)) + 2 * text.layers * text.hidden,
        outside=sum(map(_parameters, vision)) + patches + norms + table + text.hidden,
        tlm=tlm,
        lora=added,
        trained=added + (tlm if stage == 1 else 0),
    )


def _parameters(linear: Linear) -> int:
    return linear.inputs * linear.outputs + (linear.outputs if linear.bias else 0)


def _with_lora(linears: list[Linear], lora: LoraSpec) -> list[Linear]:
    return [x for x in linears if x.name.rpartition(".")[2] in lora.target]


# What is in memory --------------------------------------------------------------------------------------------------


def training_items(
    shape: ModelShape,
    counts: Counts,
    common: TrainSpec,
    settings: SftStageSpec,
    strategy: Strategy,
    processes: int,
    checkpointing: bool,
) -> Iterator[Item]:
    """Lines of one strategy; the same names in the same order for each."""
    frozen = counts.layers + counts.outside
    rest = counts.tlm + counts.lora
    number = 2 if common.frozen == "bfloat16" else 4
    parts = processes if strategy == "fsdp" else 1
    if strategy == "zero2":  # all of the model is cast; masters are apart
        yield Item("frozen weights", 2 * (frozen + rest - counts.trained), "counted, bfloat16")
        masters = 2 * counts.trained + MASTER * counts.trained // processes
        yield Item("TLM and LoRA", masters, f"counted, bfloat16 and 1/{processes} of float32")
        yield Item("gradients", 2 * counts.trained // processes, f"counted, bfloat16, 1/{processes}")
        yield Item("moments", MOMENTS * counts.trained // processes, f"counted, 1/{processes}")
    else:
        share = f", 1/{processes}" if parts > 1 else ""
        yield Item("frozen weights", number * frozen // parts, f"counted, {common.frozen}{share}")
        yield Item("TLM and LoRA", MASTER * rest // parts, f"counted, float32{share}")
        yield Item("gradients", MASTER * counts.trained // parts, f"counted, float32{share}")
        yield Item("moments", MOMENTS * counts.trained // parts, f"counted, AdamW, float32{share}")
    yield _gathered(shape, counts, common, strategy)
    compute = 2 if common.bf16 else 4
    kept = activations(shape, counts, common, settings, checkpointing)
    how = "checkpointing" if checkpointing else "all kept"
    yield Item("activations", settings.batch * kept, f"formula, {settings.max_tokens} tokens, {how}")
    answered = max(settings.max_tokens - shape.tokens - PREFIX_TEXT - QUESTION, 1)
    each = 2 * compute + 8 if compute == 2 else 12
    logits = settings.batch * answered * shape.language.vocab * each
    yield Item("logits", logits, f"formula, {answered} answer tokens, float32 with gradients")
    yield Item("context", CONTEXT, "assumed")


def _gathered(shape: ModelShape, counts: Counts, common: TrainSpec, strategy: Strategy) -> Item:
    """What a strategy has besides: copies of gradients, parameters of which the process owns a part."""
    if strategy == "ddp":
        return Item("strategy", MASTER * counts.trained, "formula, buckets of gradients")
    if strategy == "zero2":
        return Item("strategy", 2 * ZERO_BUCKET, "assumed, DeepSpeed's bucket")
    if strategy == "fsdp":
        number = 2 if common.bf16 else 4
        layer = (counts.layers + counts.lora) // shape.language.layers
        return Item("strategy", number * (counts.outside + counts.tlm + 2 * layer), "formula, gathered parameters")
    return Item("strategy", 0, "none")


def activations(
    shape: ModelShape, counts: Counts, common: TrainSpec, settings: SftStageSpec, checkpointing: bool
) -> int:
    """Bytes that one image's sequence keeps for the backward pass; the frozen tower keeps none.

    With checkpointing: the input of each layer, and the layer that is being computed again.
    """
    text, tokens = shape.language, settings.max_tokens
    layer = layer_activations(shape, common, tokens, lora=counts.lora > 0)
    if checkpointing:
        layers = text.layers * tokens * text.hidden * (2 if common.frozen == "bfloat16" else 4) + layer
    else:
        layers = text.layers * layer
    learns_before = counts.trained > counts.lora
    if checkpointing or learns_before:  # else the first layer's norm keeps nothing: as much less as the last one more
        layers += tokens * 4 * (text.hidden + 1)
    return layers + (tlm_activations(shape, common) if learns_before else 0)


def layer_activations(shape: ModelShape, common: TrainSpec, tokens: int, *, lora: bool) -> int:
    """Bytes of one layer: two norms in float32, rotary cosines and sines, queries, repeated keys and values and the
    attention's output (kernels keep no scores, but the mask of questions that share an image), the gated MLP's three
    products. A frozen linear keeps nothing; under a LoRA each keeps its input, by itself, the dropout's mask, and the
    LoRA's cast weights."""
    text = shape.language
    number = 2 if common.bf16 else 4
    query = text.heads * text.head_dim
    values = 4 * query + 3 * text.intermediate + 2 * text.head_dim + tokens
    kept = tokens * (2 * 4 * (text.hidden + 1) + number * values + 4 * text.heads)
    if lora:
        linears = [x for x in decoder_linears(shape) if x.name.startswith("decoder.layers.0.")]
        for linear in _with_lora(linears, common.lora):
            mask = linear.inputs if common.lora.dropout else 0  # one byte each, of the GPU's kernel
            kept += tokens * (number * (linear.inputs + common.lora.r) + mask)
            kept += number * common.lora.r * (linear.inputs + linear.outputs) if common.bf16 else 0
    return kept


def tlm_activations(shape: ModelShape, common: TrainSpec) -> int:
    """TLM's MLP over the anchors (before and after SiLU) and its cast weights, the anchors' spread over the tokens
    twice, tokens and gamma in float32."""
    width, tokens = shape.language.hidden, shape.tokens
    number = 2 if common.bf16 else 4
    cast = number * shape.tlm_hidden * 2 * width if common.bf16 else 0
    mlp = number * shape.anchors * (BANDS + 2 * shape.tlm_hidden)
    return mlp + cast + number * 2 * tokens * shape.anchors + 2 * 4 * tokens * width

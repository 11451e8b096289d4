"""What a recipe or a device spec may say. Each is one TOML file; an unknown key is an error."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, lt=1)]


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


# export/NAME.toml ---------------------------------------------------------------------------------------------------


class VisionSpec(_Spec, frozen=True):
    """Shape of a vision tower from scratch; names as in Hugging Face's Qwen2_5_VLVisionConfig."""

    depth: Positive
    hidden_size: Positive
    num_heads: Positive
    intermediate_size: Positive
    window_size: Positive
    """Pixels; a multiple of 28."""
    fullatt_block_indexes: tuple[int, ...]


class TextSpec(_Spec, frozen=True):
    """Shape of a language model from scratch; names as in Hugging Face's Qwen2_5_VLTextConfig."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    mrope_section: tuple[int, int, int]
    """Rotary pairs for time, row, column; they add up to half a head."""


class TlmSpec(_Spec, frozen=True):
    sigma: Annotated[float, Meta(gt=0)] = 2.0
    """Width of the Gaussian, in patches."""
    hidden_mult: Positive = 4
    """Hidden width of the MLP = max(128, hidden_mult * channels)."""


class PhaseSpec(_Spec, frozen=True):
    """One stretch of the base stage: short answers first, long ones later."""

    name: str
    steps: Positive
    batch: Positive = 16
    """Images a step."""
    lr: Rate = 1e-3
    tasks: tuple[str, ...] = ()
    """Tasks that are asked; none: only the dense losses on the visual tokens."""
    questions: Positive = 2
    """Questions asked of each image of the batch."""
    dense: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of the dense losses."""


class BaseStageSpec(_Spec, frozen=True):
    """`--stage base`: the pretraining that a model without a published base needs."""

    phases: tuple[PhaseSpec, ...]
    augment: bool = True
    """Flips, quarter turns and crops of image and boxes together; brightness."""
    warmup: Fraction = 0.05
    weight_decay: Fraction = 0.05
    seed: int = 0


class SftStageSpec(_Spec, frozen=True):
    """Stage 1 (knowledge injection) or stage 2 (task execution): REFERENCE section 1."""

    epochs: Annotated[float, Meta(gt=0)]
    lr: Rate
    batch: Positive = 1
    """Images of a process that are computed at once; the paper has one image per GPU."""
    accumulate: Positive = 1
    """So many batches of each process make a step: batch * accumulate * processes images."""
    tasks: tuple[str, ...] = ()
    """Records of these tasks only; empty: all records."""
    max_tokens: Positive = 2048
    """Records that would make a sequence longer are left out, and counted."""
    reading: Literal["paper", "official"] = "official"
    """Stage 1 only. paper: TLM alone is trained (the text). official: TLM and LoRA (Fig. 2 and the released code)."""
    warmup: Fraction = 0.05
    weight_decay: Fraction = 0.0
    max_steps: int = -1
    """Stop after so many steps; -1: after the epochs."""
    seed: int = 0


class LoraSpec(_Spec, frozen=True):
    r: Positive = 8
    alpha: Positive = 32
    dropout: Fraction = 0.05
    target: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainSpec(_Spec, frozen=True):
    stage1: SftStageSpec
    stage2: SftStageSpec
    base: BaseStageSpec | None = None
    lora: LoraSpec = LoraSpec()
    bf16: bool = True
    """Autocast to bfloat16; weights that are trained stay float32."""
    frozen: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that stages 1 and 2 do not train. bfloat16: half the memory; for a published base, whose
    weights are bfloat16 in the first place."""
    checkpointing: bool = False
    """Stages 1 and 2 keep the inputs of each layer alone and compute the rest again in the backward pass."""


class ExportSpec(_Spec, frozen=True):
    opset: Literal[17] = 17
    """One ONNX set for TensorRT 8.6 to 11 (DESIGN section 3)."""
    cosine: Fraction = 0.9999
    """Least cosine of each graph with PyTorch and of PyTorch with Hugging Face."""
    norm_ratio: Fraction = 1e-3
    """Largest distance of the ratio of norms from 1."""


class ModelRecipe(_Spec, frozen=True):
    """export/NAME.toml: the model, how it is trained, how it is exported."""

    name: str
    image_size: Positive
    """Pixels of the square image; a multiple of 28."""
    train: TrainSpec
    base: str | None = None
    """Hub id or folder of a published Qwen2.5-VL; none: from scratch, with `vision`, `text` and `tokenizer`."""
    vision: VisionSpec | None = None
    text: TextSpec | None = None
    tokenizer: str | None = None
    """Folder of `tokenizer.json`, relative to the recipe."""
    anchor_nodes: Positive = 9
    """Anchors are looked up on a grid of so many nodes a side."""
    tlm: TlmSpec = TlmSpec()
    export: ExportSpec = ExportSpec()

    def __post_init__(self) -> None:
        if self.image_size % 28:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 28 (14 px patches, merged 2 x 2)")
        if self.base is None and not (self.vision and self.text and self.tokenizer and self.train.base):
            raise ValueError("a recipe without `base` needs [vision], [text], `tokenizer` and [train.base]")
        if self.base is None and self.train.frozen == "bfloat16":
            raise ValueError('frozen = "bfloat16" would round the weights of a model from scratch: leave it out')


# calib/NAME.toml ----------------------------------------------------------------------------------------------------


class RangeSpec(_Spec, frozen=True):
    method: Literal["max", "percentile", "mse", "entropy"] = "percentile"
    """mse: least squared error of the rounded and clipped values. entropy: least Kullback-Leibler divergence of their
    distribution (TensorRT's calibrator, Migacz, GTC 2017)."""
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    """Of |x|, for `percentile` alone."""


class SetSpec(_Spec, frozen=True):
    """Which tiles of the manifests the ranges come from, and which INT8 is compared on (fusar_edge.calib.tiles)."""

    tiles: Positive = 64
    """Images, each with one question, its answer and its anchors, that the ranges are taken from."""
    held_out: Positive = 16
    """Images at most on which INT8 is compared with FP32; no range is taken from them."""
    clusters: Positive = 8
    """Kinds of land cover that take turns within a source."""
    seed: int = 0


class SmoothSpec(_Spec, frozen=True):
    """SmoothQuant (Xiao et al., ICML 2023), folded in by `export --smooth` (fusar_edge.calib.smoothquant)."""

    linears: tuple[str, ...]
    """Patterns of the linears whose inputs are smoothed. Those that read one tensor share its factors: naming one of
    them is enough."""
    alphas: tuple[Fraction, ...] = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0)
    """Shares of the difficulty that move from activations to weights; the one with the least error is taken, for each
    place. 0 with no factors at all is always among them."""
    rows: Positive = 2048
    """Rows of each activation on which the error is measured."""


class OutlierSpec(_Spec, frozen=True):
    """Input channels that are multiplied in float beside the INT8 product, where no fold can make them smaller."""

    linears: tuple[str, ...]
    """Patterns of the linears that may have such channels."""
    ratio: Annotated[float, Meta(gt=1)] = 8.0
    """A channel is an outlier where its largest |x| is so many times the median channel's."""
    share: Rate = 0.01
    """At most this share of a linear's channels."""


class GateSpec(_Spec, frozen=True):
    """What INT8 must keep of FP32 (fusar_edge.calib.gate). The first two are asked by `calibrate`, all by `build`."""

    vision_cosine: Fraction = 0.995
    """Least mean cosine of the visual tokens."""
    vision_norm: Fraction = 0.01
    """Largest mean distance of the ratio of their norms from 1."""
    logits_cosine: Fraction = 0.99
    logits_norm: Fraction = 0.05
    token_agreement: Fraction = 0.97
    """Least share of greedy tokens that are the same, each chain on its own visual tokens, fed the reference answer."""
    logits_kl: Annotated[float, Meta(gt=0)] = 0.02
    """Largest mean Kullback-Leibler divergence of the next token's distribution, nats."""
    tasks: Fraction = 0.99
    """Least ratio of each task metric to FP32's."""


class CalibRecipe(_Spec, frozen=True):
    """calib/NAME.toml: which numbers become INT8, and how their ranges are found."""

    name: str
    set: SetSpec = SetSpec()
    ranges: RangeSpec = RangeSpec()
    smooth: SmoothSpec | None = None
    outliers: OutlierSpec | None = None
    keep: dict[str, str] = {}
    """Pattern over layer names (fnmatch) -> the reason why the layer stays in higher precision."""
    gate: GateSpec = GateSpec()


# engines/NAME.toml --------------------------------------------------------------------------------------------------

Precision = Literal["int8", "int8-fp16", "fp16", "fp32"]


class HardwareSpec(_Spec, frozen=True):
    """What the planner must know of a GPU. Rates are dense: a data sheet's sparse figure halved."""

    memory_mib: Positive
    """All that the device has; on a Jetson the processor and the GPU share it."""
    bandwidth_gb_s: Annotated[float, Meta(gt=0)]
    """Peak of the memory, 1e9 bytes a second."""
    int8_tops: Annotated[float, Meta(gt=0)]
    """Peak of dense INT8 on the GPU alone (no DLA), 1e12 operations a second; a multiply-add is two."""
    fp16_tflops: Annotated[float, Meta(gt=0)]
    """Peak of dense FP16 or BF16; FP32 graphs run in TF32, at half of it."""
    power_mode: str
    """Setting that the rates belong to; for a Jetson the name that nvpmodel shows."""
    gpu_clock_mhz: Positive
    """Clock that the rates belong to."""
    source: Annotated[str, Meta(min_length=1)]
    """Where the figures stand, and what was derived or assumed."""
    fp4_tflops: Annotated[float, Meta(gt=0)] | None = None
    """Dense FP4, where there is any. No engine of ours uses it: for comparison with what others published."""


class EngineSpec(_Spec, frozen=True):
    """engines/NAME.toml: one device."""

    name: str
    engine: Literal["onnxruntime", "tensorrt"]
    status: Literal["built", "compiled only", "untested"]
    """What was really done on the device."""
    memory_mib: Positive
    """Memory that the process may use: the device's, less what the system keeps."""
    threads: Positive = 2
    cache_tokens: Positive = 1024
    """Capacity of the KV cache."""
    tile_px: Positive = 504
    overlap_px: Annotated[int, Meta(ge=0)] = 64
    compute_capability: Annotated[str, Meta(pattern=r"^(\d{1,2}\.\d)?$")] = ""
    """Of the GPU, such as "8.7"; a plan runs on that one alone. Empty: no GPU."""
    vision_batch: Annotated[int, Meta(ge=1, le=8)] = 1
    """Tiles that the vision engine takes at once, at most. Scratch memory grows with it."""
    prefill_tokens: Positive = 512
    """New tokens of one prefill, at most."""
    workspace_mib: Annotated[int, Meta(ge=0)] = 0
    """Memory that TensorRT's builder may try kernels with; 0: its own limit."""
    precision: Precision = "int8"
    """Of the graphs it is meant for. int8: as `calibrate` writes them, the rest float32; int8-fp16: the rest half."""
    kv_dtype: Literal["float32", "float16"] = "float32"
    """Type of the KV cache: the graph's input `past`."""
    cuda_graphs: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Lengths of the cache for which the decode step is kept as a CUDA graph, each with an execution context; 0: none.
    It needs cuda-python and TensorRT 10 or later. What it gains was never measured."""
    decoder: Literal["plain", "fused"] = "plain"
    """Engine onnxruntime. plain: as exported, the CPU twin of a TensorRT plan. fused: rewritten in ONNX Runtime's own
    operators (fusar_edge.engines.fused); measured on x86-64 alone."""
    latency_goal_ms: Annotated[float, Meta(gt=0)] | None = None
    """Goal, p90: one tile looked at and one question answered in 8 tokens. None was ever measured on a GPU."""
    hardware: HardwareSpec | None = None

    def __post_init__(self) -> None:
        if self.engine == "tensorrt" and not (self.compute_capability and self.hardware):
            raise ValueError('engine = "tensorrt" needs `compute_capability`, such as "8.7", and [hardware]')
        if self.engine == "onnxruntime" and self.compute_capability:
            raise ValueError('engine = "onnxruntime" runs on the processor: leave `compute_capability` out')
        if self.engine == "tensorrt" and self.decoder == "fused":
            raise ValueError('decoder = "fused" is for ONNX Runtime: leave it out, TensorRT fuses the graph itself')
        if self.hardware and self.memory_mib > self.hardware.memory_mib:
            raise ValueError(
                f"memory_mib {self.memory_mib} is more than the device has: hardware.memory_mib is "
                f"{self.hardware.memory_mib}"
            )
        if self.engine == "tensorrt" and self.prefill_tokens > self.cache_tokens:
            raise ValueError(
                f"prefill_tokens {self.prefill_tokens} do not fit the KV cache: cache_tokens is {self.cache_tokens}"
            )

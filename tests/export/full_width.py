"""Slices of the 7B shape with random weights, and what Hugging Face and the two graphs say of them.

2 of 32 vision blocks (one windowed, one full), 2 of 28 decoder layers, TLM whole, at every width of Qwen2.5-VL-7B but
the vocabulary: 20,480 words instead of 152,064. The decoder is beyond 2 GiB with them, so that its weights go the way
of the real one's, to files of their own (and tracing takes 6 GB instead of 8).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.calib.smoothquant.planted import plant
from fusar_edge.calib.smoothquant.seams import untie_head
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.parity import (
    DECODER_OUTPUTS,
    VISION_OUTPUTS,
    Array,
    Gate,
    Run,
    Sample,
    Values,
    rollout,
    run_from_file,
    run_from_module,
    sample,
)
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.model.network import FusarForConditionalGeneration, network_config
from fusar_edge.model.tlm import TokenModulation
from fusar_edge.model.vision import hf_patches_from_grey

IMAGE_SIZE, PATCHES, CELLS, CHANNELS = 504, 36, 18, 3584
VISION = {
    "depth": 2,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "out_hidden_size": CHANNELS,
}
TEXT = {
    "hidden_size": CHANNELS,
    "intermediate_size": 18944,
    "num_hidden_layers": 2,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "mrope_section": [16, 24, 24],
    "rms_norm_eps": 1e-6,
}
TOKENS = {"vocab_size": 20480, "bos": 20470, "eos": 20471, "image": 20472, "video": 20473, "vision_start": 20474,
          "vision_end": 20475}  # fmt: skip
CACHE_ROW = (2, 2, 2, 4, 128)
"""(L, 2, B, H_kv, D)."""

MASSIVE, SHARE = 1000.0, 0.001
"""What the MLP of the first block and layer writes into a few channels of the residual stream, in which large models
have massive activations (Sun et al., arXiv 2402.17762): so many times more, in such a share of them."""


@dataclass(frozen=True)
class Reference:
    """Hugging Face's own: prefill with the image, then token by token on its own cache, at its own positions."""

    tokens: Array
    """[B, T, C] of the tower."""
    logits: Array
    """[B, N, V]."""
    cache: Array
    """[N, L, 2, B, H_kv, D]."""
    positions: Array
    """[3, B, N]."""
    peaks: dict[str, float]
    """Largest |x| over the median |x| in the input of some layers."""


@dataclass
class Measured:
    """What both graphs say together: the decoder reads the visual tokens of the vision graph."""

    tokens: Array
    rolls: dict[bool, list[Values]] = field(default_factory=dict)
    """By whether the image's part is reused."""


@dataclass(frozen=True)
class Slice:
    outliers: bool
    folder: Path
    given: Sample
    reference: Reference
    in_torch: Measured


def random_tlm(tlm: TokenModulation, seed: int = 1) -> TokenModulation:
    """gamma and beta of about 1. The same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tlm.named_parameters():
            parameter.normal_(0, 1.0 if name.endswith("0.weight") else 0.02, generator=generator)
            if parameter.dim() == 1:
                parameter *= 15
    return tlm


def model_7b(outliers: bool = False, text: dict[str, Any] = TEXT) -> FusarForConditionalGeneration:
    """Linears with std 0.02. Biases (0.3) and norms (1 +- 0.3) are wide, or a lost one would not be seen."""
    config = network_config(dict(VISION), dict(text), IMAGE_SIZE, sigma=2.0, hidden_mult=4, tokens=dict(TOKENS))
    model = FusarForConditionalGeneration(config).eval()
    untie_head(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, spread = (1.0, 0.3) if "norm" in name or "ln_q" in name else (0.0, 0.3)
            parameter.normal_(mean, 0.02 if parameter.dim() > 1 else spread, generator=generator)
    random_tlm(model.tlm)
    if outliers:
        plant(model)
        make_massive(model.model.visual.blocks[0].mlp.down_proj, generator)
        make_massive(model.model.language_model.layers[0].mlp.down_proj, generator)
    return model


@torch.no_grad()
def make_massive(linear: nn.Linear, generator: torch.Generator) -> None:
    few = torch.randperm(linear.out_features, generator=generator)[: max(1, round(SHARE * linear.out_features))]
    linear.weight[few] *= MASSIVE


@torch.no_grad()
def hugging_face(model: FusarForConditionalGeneration, given: Sample) -> Reference:
    ids = torch.from_numpy(given.input_ids).long()
    patches, grid = hf_patches_from_grey(torch.from_numpy(given.vision["pixels"]))
    vision, text = model.model.visual.blocks[1], model.model.language_model.layers[1]
    peaks: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(_noted(peaks, name))
        for name, module in (
            ("vision residual", vision.norm1),
            ("vision qkv", vision.attn.qkv),
            ("vision down_proj", vision.mlp.down_proj),
            ("decoder residual", text.input_layernorm),
            ("decoder q_proj", text.self_attn.q_proj),
            ("decoder down_proj", text.mlp.down_proj),
        )
    ]
    tokens = model.model.visual(patches, grid).reshape(len(ids), -1, CHANNELS).numpy()
    model.model.rope_deltas = None
    forward = Qwen2_5_VLForConditionalGeneration.forward
    step = forward(
        model,
        input_ids=ids[:, : given.prompt],
        pixel_values=patches,
        image_grid_thw=grid,
        use_cache=True,
        cache_position=torch.arange(given.prompt),
    )
    for hook in hooks:
        hook.remove()
    logits = [step.logits]
    for place in range(given.prompt, ids.shape[1]):
        step = forward(
            model,
            input_ids=ids[:, place : place + 1],
            past_key_values=step.past_key_values,
            use_cache=True,
            cache_position=torch.tensor([place]),
        )
        logits.append(step.logits)
    cache = torch.stack([torch.stack([layer.keys, layer.values]) for layer in step.past_key_values.layers])
    return Reference(
        tokens=tokens,
        logits=torch.cat(logits, dim=1).numpy(),
        cache=cache.permute(4, 0, 1, 2, 3, 5).numpy(),  # (L, 2, B, H_kv, N, D) -> (N, L, 2, B, H_kv, D)
        positions=model.model.get_rope_index(ids, grid)[0].numpy(),
        peaks=peaks,
    )


def _noted(peaks: dict[str, float], name: str) -> Callable[..., None]:
    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        size = inputs[0].abs()
        peaks.setdefault(name, float(size.max() / size.median()))

    return note


def measured(vision: Run, decoder: Run, given: Sample) -> Measured:
    """With every anchor masked: what Hugging Face can say too."""
    masked = given.vision | {"anchor_mask": np.zeros_like(given.vision["anchor_mask"])}
    found = Measured(vision(masked)["visual_tokens"])
    for reuse in (False, True):
        found.rolls[reuse] = rollout(decoder, found.tokens, given, CACHE_ROW, reuse=reuse)
    return found


def new_slice(folder: Path, outliers: bool) -> Slice:
    """Writes vision.onnx and decoder.onnx into `folder`; the model is gone afterwards."""
    model = model_7b(outliers)
    given = sample(model, 2)
    reference = hugging_face(model, given)
    vision, decoder = VisionGraph(model).eval(), DecoderGraph(model).eval()
    in_torch = measured(run_from_module(vision, VISION_OUTPUTS), run_from_module(decoder, DECODER_OUTPUTS), given)
    del model
    write_graph(vision, FusarVisionOnnxConfig(vision.config), folder / "vision.onnx")
    del vision
    gc.collect()
    write_graph(decoder, FusarDecoderOnnxConfig(decoder.config), folder / "decoder.onnx")
    del decoder
    gc.collect()  # the exporter leaves cycles: 2.5 GB that the next slice would come on top of
    return Slice(outliers, folder, given, reference, in_torch)


def vision_with_tower(path: Path) -> Run:
    """vision.onnx in ONNX Runtime, which also says what enters TLM, as `tower`."""
    vision = VisionGraph(model_7b(text=TEXT | {"num_hidden_layers": 1, "intermediate_size": 64})).eval()
    write_graph(vision, FusarVisionOnnxConfig(vision.config), path)
    del vision
    gc.collect()
    model = onnx.load(path)
    made_by = {name: node for node in model.graph.node for name in node.output}
    (entry,) = {
        name
        for node in model.graph.node
        if node.name.startswith("tlm")
        for name in node.input
        if name in made_by and made_by[name].name.startswith("vision") and made_by[name].op_type != "Constant"
    }
    model.graph.node.append(onnx.helper.make_node("Identity", [entry], ["tower"], name="tower"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("tower", onnx.TensorProto.FLOAT, None))
    onnx.save(model, path)
    return run_from_file(path)


def in_onnxruntime(made: Slice) -> Measured:
    return measured(run_from_file(made.folder / "vision.onnx"), run_from_file(made.folder / "decoder.onnx"), made.given)


def check_decoder(reference: Reference, given: Sample, steps: list[Values], gate: Gate) -> None:
    """Logits, tokens and cache of one rollout."""
    assert {step["logits"].shape[1] for step in steps} == {TOKENS["vocab_size"]}
    stop = 0
    for step in steps:
        stop += len(step["new"])
        gate.check("decoder.logits", reference.logits[:, stop - 1], step["logits"])
        gate.check_tokens(reference.logits[:, stop - 1], step["next_ids"])
    assert stop == given.input_ids.shape[1]
    new = np.concatenate([step["new"] for step in steps])
    for layer, which in np.ndindex(new.shape[1:3]):
        gate.check(f"decoder.{('keys', 'values')[which]}", reference.cache[:, layer, which], new[:, layer, which])

"""Places of the network where a factor can move from an activation's channels into the weights that read them.

A seam is one activation tensor with what makes it (a norm, or the rows of a linear whose output enters linearly) and
the linears that read it. Dividing the makers' channel j by s_j and multiplying the readers' column j by s_j leaves the
function as it is (SmoothQuant, Xiao et al., ICML 2023, section 4). Four kinds are there in Qwen2.5-VL:

    norm -> attn.qkv | q_proj, k_proj, v_proj       norm -> gate_proj, up_proj
    norm -> merger.mlp.0 | lm_head                  v -> attn.proj | o_proj        up_proj -> down_proj

What follows a GELU or a SiLU (merger.mlp.2, TLM) has no seam, nor have the inputs of the graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusar_edge.model.adapted import AdaptedLinear
from fusar_edge.model.network import FusarForConditionalGeneration

SEAMLESS = ("vision.patch_embed", "vision.merger.mlp.2", "tlm.*")
"""Patterns of the layers without a seam."""


@dataclass(frozen=True)
class Maker:
    """A module whose output channels become smaller."""

    module: nn.Module
    first: int = 0
    """Row of its weight (and bias) that is the seam's channel 0."""


@dataclass(frozen=True)
class Seam:
    """One activation tensor with K channels in F groups that have a factor in common."""

    readers: dict[str, nn.Linear]
    """Layer name in the graphs -> linear, in the order of the graph."""
    maker: Maker
    group: Tensor
    """[K] int64: which of the F factors belongs to each channel."""

    @property
    def name(self) -> str:
        """That of the first reader."""
        return next(iter(self.readers))

    @property
    def factors(self) -> int:
        return int(self.group.max()) + 1


def seams(model: FusarForConditionalGeneration) -> Iterator[Seam]:
    """Every seam of the model, in the order of the graphs."""
    visual: Any = model.model.visual
    for index, block in enumerate(visual.blocks):
        yield from block_seams(block, f"vision.blocks.{index}")
    yield merger_seam(visual.merger)
    language: Any = model.model.language_model
    for index, layer in enumerate(language.layers):
        yield from layer_seams(layer, f"decoder.layers.{index}")
    yield head_seam(language.norm, model.lm_head)


def block_seams(block: Any, name: str) -> Iterator[Seam]:
    """Of a block of the vision tower."""
    width = block.attn.qkv.in_features
    yield _after(block.norm1, f"{name}.attn", {"qkv": block.attn.qkv})
    yield Seam({f"{name}.attn.proj": block.attn.proj}, Maker(block.attn.qkv, 2 * width), torch.arange(width))
    yield from _mlp(block.norm2, block.mlp, f"{name}.mlp")


def merger_seam(merger: Any) -> Seam:
    return _after(merger.ln_q, "vision.merger.mlp", {"0": merger.mlp[0]})


def layer_seams(layer: Any, name: str) -> Iterator[Seam]:
    """Of a layer of the language model."""
    attention = layer.self_attn
    readers = {part: getattr(attention, part) for part in ("q_proj", "k_proj", "v_proj")}
    yield _after(layer.input_layernorm, f"{name}.self_attn", readers)
    heads = torch.arange(attention.o_proj.in_features).reshape(-1, attention.head_dim)
    # Query heads that share a value head read the same channels of it.
    shared = torch.arange(len(heads)) // attention.num_key_value_groups
    group = (shared[:, None] * attention.head_dim + torch.arange(attention.head_dim)).flatten()
    yield Seam({f"{name}.self_attn.o_proj": attention.o_proj}, Maker(attention.v_proj), group)
    yield from _mlp(layer.post_attention_layernorm, layer.mlp, f"{name}.mlp")


def head_seam(norm: Any, lm_head: nn.Linear) -> Seam:
    return _after(norm, "decoder", {"lm_head": lm_head})


def _mlp(norm: nn.Module, mlp: Any, name: str) -> Iterator[Seam]:
    yield _after(norm, name, {"gate_proj": mlp.gate_proj, "up_proj": mlp.up_proj})
    yield Seam({f"{name}.down_proj": mlp.down_proj}, Maker(mlp.up_proj), torch.arange(mlp.down_proj.in_features))


def _after(norm: Any, name: str, readers: dict[str, nn.Linear]) -> Seam:
    """Behind a norm. A reader that is wider (the merger's: four patches side by side) repeats its channels."""
    width = norm.weight.numel()
    channels = next(iter(readers.values())).in_features
    return Seam(
        {f"{name}.{part}": linear for part, linear in readers.items()}, Maker(norm), torch.arange(channels) % width
    )


def untie_head(model: FusarForConditionalGeneration) -> None:
    """Give the head a weight of its own where the embedding is the same tensor: a factor is for the head alone.

    INT8 graphs hold the two apart anyway (embedding in FP16, head in INT8).
    """
    if model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False


@torch.no_grad()
def fold(seam: Seam, factors: Tensor) -> None:
    """Divide the maker's channels by `factors` [F] and multiply the readers' columns by them, in place."""
    rows = slice(seam.maker.first, seam.maker.first + seam.factors)
    for tensor in (seam.maker.module.weight, getattr(seam.maker.module, "bias", None)):
        if isinstance(tensor, Tensor):
            tensor[rows] /= factors.reshape(-1, *[1] * (tensor.dim() - 1)).to(tensor.dtype)
    if isinstance(seam.maker.module, AdaptedLinear):
        assert rows == slice(0, seam.maker.module.out_features), "the branch's rows are those of the whole linear"
        seam.maker.module.fold_outputs(factors)
    for linear in seam.readers.values():
        linear.weight *= factors[seam.group].to(linear.weight.dtype)
        if isinstance(linear, AdaptedLinear):
            linear.fold_inputs(factors[seam.group])

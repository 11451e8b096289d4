"""The vision graph: grey pixels and anchors -> visual tokens (DESIGN section 3), on the model's own parameters.

The same plan as fusar_edge.model.vision, as a tree of modules, so that every node is named by its layer, and with the
folds that only inference can make: patch embedding, and the attention's scale in the rotary tables.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusar_edge.anchors.codes import BANDS
from fusar_edge.export.baking.basis import Basis
from fusar_edge.export.layers import Norm, reshape, rotated, signed
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.tlm import BakedModulation
from fusar_edge.model.vision import GridPlan, grey_patch_embedding, grid_plan

Groups = tuple[tuple[int, int], ...]


class PatchEmbedding(nn.Module):
    """Conv2d(1, D, 14, 14) with normalisation, colours and frames folded in; patches in the plan's order."""

    weight: Tensor
    bias: Tensor
    order: Tensor

    def __init__(self, weight: Tensor, order: Tensor) -> None:
        super().__init__()
        self.width, _, _, _, self.patch_size = weight.shape
        folded, bias = grey_patch_embedding(weight.detach())
        for name, value in (("weight", folded), ("bias", bias)):
            self.register_buffer(name, value)  # persistent: the exporter names it
        self.register_buffer("order", order, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.conv2d(pixels, self.weight, self.bias, stride=self.patch_size)
        return reshape(hidden, 0, self.width, -1).transpose(1, 2)[:, self.order]  # (B, P, D)


class WindowAttention(nn.Module):
    """Attention inside each window; a window group is one batch of equal windows, so there is no mask."""

    cos: Tensor
    sin: Tensor

    def __init__(self, attention: Any, groups: Groups, cos: Tensor, sin: Tensor) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.groups, self.width = attention.num_heads, groups, cos.shape[-1]
        scale = torch.tensor([self.width**-0.5, 1.0])[:, None, None]  # query, key
        self.register_buffer("cos", cos[:, None, None] * scale, persistent=False)  # (P, 2, 1, head_dim)
        self.register_buffer("sin", signed(sin, self.width // 2)[:, None, None] * scale, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        qkv = reshape(self.qkv(hidden), 0, 0, 3, self.heads, -1)
        both = rotated(qkv[:, :, :2], self.cos, self.sin, self.width // 2)
        query, key, value = both[:, :, 0], both[:, :, 1], qkv[:, :, 2]  # (B, P, heads, head_dim)
        outputs, start = [], 0
        for count, size in self.groups:
            stop = start + count * size
            parts = (query, key, value) if len(self.groups) == 1 else (x[:, start:stop] for x in (query, key, value))
            q, k, v = (reshape(x, -1, size, self.heads, self.width) for x in parts)  # (B * count, size, ...)
            scores = torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1))
            mixed = torch.matmul(torch.softmax(scores, dim=-1), v.transpose(1, 2)).transpose(1, 2)
            outputs.append(reshape(mixed, -1, count * size, self.heads * self.width))
            start = stop
        return self.proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))


class Block(nn.Module):
    def __init__(self, block: Any, attention: WindowAttention) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.attn, self.mlp = attention, block.mlp

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class Merger(nn.Module):
    """Four patches -> one token; back from the plan's order to raster order."""

    inverse: Tensor

    def __init__(self, merger: Any, inverse: Tensor) -> None:
        super().__init__()
        self.ln_q, self.mlp, self.width = Norm(merger.ln_q), merger.mlp, merger.hidden_size
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens: Tensor = self.mlp(reshape(self.ln_q(hidden), 0, -1, self.width))
        return tokens[:, self.inverse]


def tower_plan(config: Any, image_size: int) -> GridPlan:
    """Of a Qwen2_5_VLVisionConfig."""
    window_cells = config.window_size // config.spatial_merge_size // config.patch_size
    head_dim = config.hidden_size // config.num_heads
    return grid_plan(image_size // config.patch_size, config.spatial_merge_size, window_cells, head_dim)


def planned_block(block: Any, index: int, config: Any, plan: GridPlan) -> Block:
    """Hugging Face's block `index` in the form of the graph."""
    whole = ((1, len(plan.order)),)
    groups = whole if index in config.fullatt_block_indexes else plan.window_groups
    return Block(block, WindowAttention(block.attn, groups, plan.cos, plan.sin))


class Tower(nn.Module):
    """The Qwen2.5-VL vision tower for one grey image size."""

    def __init__(self, tower: Any, image_size: int) -> None:
        super().__init__()
        plan = tower_plan(tower.config, image_size)
        self.patch_embed = PatchEmbedding(tower.patch_embed.proj.weight, plan.order)
        self.blocks = nn.ModuleList(
            planned_block(block, index, tower.config, plan) for index, block in enumerate(tower.blocks)
        )
        self.merger = Merger(tower.merger, plan.inverse)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 1, size, size] 0..1 -> [B, T, C], raster order."""
        hidden = self.patch_embed(pixels)
        for block in self.blocks:
            hidden = block(hidden)
        tokens: Tensor = self.merger(hidden)
        return tokens


class VisionGraph(nn.Module):
    """Tower and TLM. With every anchor masked the tokens are those of plain Qwen2.5-VL.

    `baked`: the basis of a baked table; `anchors` are then its coefficients, and there is no MLP in the graph.
    """

    def __init__(self, model: FusarForConditionalGeneration, baked: Basis | None = None) -> None:
        super().__init__()
        self.bands = BANDS if baked is None else baked.rank
        self.config = copy.deepcopy(model.config)  # the exporter writes into it
        self.config.fusar["anchor_bands"] = self.bands
        self.vision = Tower(model.model.visual, model.config.fusar["image_size"])
        self.tlm: nn.Module = model.tlm
        if baked is not None:
            self.tlm = BakedModulation(model.tlm, *(torch.from_numpy(part) for part in (baked.mean, baked.basis)))

    def forward(self, pixels: Tensor, anchors: Tensor, anchor_positions: Tensor, anchor_mask: Tensor) -> Tensor:
        """pixels [B, 1, size, size] 0..1, anchors [B, S, bands], positions [B, S, 2] (y, x), mask [B, S]
        -> [B, T, C].

        All float32; S >= 1. A masked anchor must hold finite numbers.
        """
        tokens: Tensor = self.tlm(self.vision(pixels), anchors, anchor_positions, anchor_mask)
        return tokens

"""The Qwen2.5-VL vision tower for one fixed square image size, on the Hugging Face module's own parameters.

With a fixed grid every index of the tower is a constant. Windows are sorted by size in one permutation, so windowed
attention is one batched attention per window size, without masks; the inverse permutation follows the merger. Training
runs this form too: the Hugging Face tower loops over windows and images in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

# Qwen2VLImageProcessor's statistics (those of OpenAI CLIP).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class GridPlan:
    """Constants of one grid."""

    order: Tensor
    """[P] raster index of the patch at each place of the sorted sequence."""
    inverse: Tensor
    """[P / merge^2] place in the sorted sequence of each merged cell, raster order."""
    window_groups: tuple[tuple[int, int], ...]
    """(number of windows, patches in each), in sequence order."""
    cos: Tensor
    """[P, head_dim], sorted."""
    sin: Tensor


def grid_plan(patches: int, merge: int, window_cells: int, head_dim: int, theta: float = 10000.0) -> GridPlan:
    """Plan of a patches x patches grid in windows of window_cells x window_cells merged cells."""
    cells = patches // merge
    cell = torch.arange(cells * cells).reshape(cells, cells)
    windows = [
        cell[r : r + window_cells, c : c + window_cells].flatten()
        for r in range(0, cells, window_cells)
        for c in range(0, cells, window_cells)
    ]
    windows.sort(key=len, reverse=True)
    sizes = [len(w) for w in windows]
    groups = tuple((sizes.count(size), size * merge * merge) for size in sorted(set(sizes), reverse=True))
    cell_order = torch.cat(windows)
    patch = torch.arange(patches * patches).reshape(cells, merge, cells, merge).permute(0, 2, 1, 3)
    order = patch.reshape(cells * cells, merge * merge)[cell_order].flatten()
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float) / (head_dim // 2)))
    row, column = order // patches, order % patches
    angle = torch.cat([torch.outer(row.float(), frequency), torch.outer(column.float(), frequency)], dim=-1)
    angle = torch.cat([angle, angle], dim=-1)
    return GridPlan(order, torch.argsort(cell_order), groups, angle.cos(), angle.sin())


def grey_patch_embedding(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Fold normalisation, 3 equal channels and 2 equal frames: [D, 3, 2, p, p] -> weight [D, 1, p, p], bias [D]."""
    mean = weight.new_tensor(IMAGE_MEAN).reshape(1, 3, 1, 1)
    std = weight.new_tensor(IMAGE_STD).reshape(1, 3, 1, 1)
    scaled = weight.sum(2) / std
    return scaled.sum(1, keepdim=True), -(scaled * mean).sum((1, 2, 3))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class FixedGridVision(nn.Module):
    """Grey image -> merged visual tokens. Holds no parameters: it runs those of `tower`."""

    order: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, tower: Qwen2_5_VisionTransformerPretrainedModel, image_size: int) -> None:
        super().__init__()
        config = tower.config
        self.tower = tower
        self.patches = image_size // config.patch_size
        if image_size % (config.patch_size * config.spatial_merge_size):
            raise ValueError(
                f"image size {image_size} is not a multiple of {config.patch_size * config.spatial_merge_size}"
            )
        window_cells = config.window_size // config.spatial_merge_size // config.patch_size
        head_dim = config.hidden_size // config.num_heads
        plan = grid_plan(self.patches, config.spatial_merge_size, window_cells, head_dim)
        self.window_groups = plan.window_groups
        for name in ("order", "inverse", "cos", "sin"):
            self.register_buffer(name, getattr(plan, name), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 1, size, size], grey 0..1 -> [B, (patches / merge)^2, out_hidden_size], raster order."""
        weight, bias = grey_patch_embedding(self.tower.patch_embed.proj.weight)
        hidden = F.conv2d(pixels.to(weight.dtype), weight, bias, stride=weight.shape[-1])
        hidden = hidden.flatten(2).transpose(1, 2)[:, self.order]  # (B, P, D)
        blocks: Any = self.tower.blocks
        for index, block in enumerate(blocks):
            full = index in self.tower.fullatt_block_indexes
            if block.gradient_checkpointing and block.training:  # Hugging Face's flag; its own block is not called
                hidden = checkpoint(self._block, block, hidden, full, use_reentrant=False)
            else:
                hidden = self._block(block, hidden, full)
        merged: Tensor = self._merge(hidden)[:, self.inverse]
        return merged

    def _block(self, block: Any, hidden: Tensor, full: bool) -> Tensor:
        hidden = hidden + self._attention(block.attn, block.norm1(hidden), full)
        mixed: Tensor = hidden + block.mlp(block.norm2(hidden))
        return mixed

    def _attention(self, attn: Any, hidden: Tensor, full: bool) -> Tensor:
        batch, length, width = hidden.shape
        heads: int = attn.num_heads
        query, key, value = attn.qkv(hidden).reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query = _rotated(query, self.cos, self.sin).to(value.dtype)
        key = _rotated(key, self.cos, self.sin).to(value.dtype)  # (B, heads, P, head_dim)
        groups = ((1, length),) if full else self.window_groups
        outputs, start = [], 0
        for count, size in groups:
            shape = (batch, heads, count, size, width // heads)
            q, k, v = (x[:, :, start : start + count * size].reshape(shape) for x in (query, key, value))
            outputs.append(F.scaled_dot_product_attention(q, k, v).reshape(batch, heads, count * size, width // heads))
            start += count * size
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        projected: Tensor = attn.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected

    def _merge(self, hidden: Tensor) -> Tensor:
        merger: Any = self.tower.merger
        normed = merger.ln_q(hidden)
        merged: Tensor = merger.mlp(normed.reshape(hidden.shape[0], -1, merger.hidden_size))
        return merged


def hf_patches_from_grey(pixels: Tensor, patch: int = 14, merge: int = 2, frames: int = 2) -> tuple[Tensor, Tensor]:
    """What Qwen2VLImageProcessor gives for grey images: pixel_values [B * P, 3 * 2 * p * p], grid_thw [B, 3].

    The oracle's input: the Hugging Face tower takes it as it is.
    """
    batch, _, size, _ = pixels.shape
    cells = size // patch // merge
    mean = pixels.new_tensor(IMAGE_MEAN).reshape(1, 3, 1, 1)
    std = pixels.new_tensor(IMAGE_STD).reshape(1, 3, 1, 1)
    colour = ((pixels.expand(-1, 3, -1, -1) - mean) / std)[:, None].expand(-1, frames, -1, -1, -1)
    blocks = colour.reshape(batch, frames, 3, cells, merge, patch, cells, merge, patch)
    values = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * frames * patch * patch)
    grid = torch.tensor([[1, cells * merge, cells * merge]] * batch)
    return values, grid

"""Hugging Face's own forward of a model that does not fit in memory: each layer is there while it runs.

The forward functions are those of transformers, unchanged; only where they iterate over layers, look up an embedding
or multiply by the head, the weights are read at that moment. What they say is what the graphs must say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.export.lean.modules import VISUAL, Layers, embedding_rows
from fusar_edge.export.lean.skeleton import empty_model
from fusar_edge.model.vision import hf_patches_from_grey

HEAD_ROWS = 16384
"""Rows of the head that are in memory at once."""


class _OneByOne(nn.Module):
    """Stands for a ModuleList: layer i is made when the loop comes to it."""

    def __init__(self, count: int, load: Callable[[int], nn.Module], tick: Callable[[], None]) -> None:
        super().__init__()
        self.count, self.load, self.tick = count, load, tick

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[nn.Module]:
        for index in range(self.count):
            yield self.load(index)
            self.tick()


class _Embedding(nn.Module):
    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, ids: Tensor) -> Tensor:
        return embedding_rows(self.layers.weights, ids)


class _Head(nn.Module):
    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, hidden: Tensor) -> Tensor:
        weights = self.layers.weights
        count = weights.shape("lm_head.weight")[0]
        starts = range(0, count, HEAD_ROWS)
        parts = [hidden @ weights.rows("lm_head.weight", i, min(i + HEAD_ROWS, count)).T for i in starts]
        return torch.cat(parts, dim=-1)


@torch.no_grad()
def reference(
    layers: Layers, pixels: Tensor, input_ids: Tensor, last: int, tick: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Hugging Face on an image [1, 1, S, S] and a prompt [1, N]: visual tokens [T, C], logits [last, V].

    Without anchors, its own positions; `last`: of so many positions at the end. `tick` is called after each layer.
    """
    model: Any = empty_model(layers.config)
    tower, language = model.model.visual, model.model.language_model
    # transformers makes its rotary tables in the constructor, which on the meta device hold nothing.
    tower.rotary_pos_emb = type(tower.rotary_pos_emb)(
        layers.config.vision_config.hidden_size // layers.config.vision_config.num_heads // 2
    )
    tower.patch_embed = layers.filled(lambda: tower.patch_embed, f"{VISUAL}patch_embed.")
    tower.blocks = _OneByOne(layers.config.vision_config.depth, layers.block, tick)
    tower.merger = layers.merger()
    language.embed_tokens = _Embedding(layers)
    language.layers = _OneByOne(layers.config.text_config.num_hidden_layers, layers.layer, tick)
    language.norm = layers.norm()
    model.lm_head = _Head(layers)
    seen: list[Tensor] = []
    tower.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    patches, grid = hf_patches_from_grey(pixels)
    logits = Qwen2_5_VLForConditionalGeneration.forward(
        model,
        input_ids=input_ids.long(),
        pixel_values=patches,
        image_grid_thw=grid,
        use_cache=False,
        logits_to_keep=last,
    ).logits
    return seen[0], logits[0]

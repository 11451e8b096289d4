"""The decoder graph: one step of the language model over N tokens and P cached ones (DESIGN section 3).

Attention is MatMul, Softmax, MatMul; the query heads that share a key head are rows of one product, so no key is
repeated.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fusar_edge.export.layers import Head, Norm, cache_rows, reshape, rotated, signed
from fusar_edge.model.network import FusarForConditionalGeneration

BLOCKED = -30000.0
"""Added to the score of a later token: exp() of it is 0, and FP16 holds it."""


class CachedAttention(nn.Module):
    """Grouped-query attention over the cache and the new tokens."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj = attention.o_proj
        self.heads, self.kv_heads = attention.num_heads, attention.num_key_value_heads
        self.head_dim, self.scaling = attention.head_dim, attention.scaling

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [B, N, C], blocked [N, P + N], past [P, B, H_kv, D] -> [B, N, C], new key, value [N, B, H_kv, D]."""
        rotation = (cos, sin, self.head_dim // 2)
        query = rotated(reshape(self.q_proj(hidden), 0, 0, self.heads, -1), *rotation) * self.scaling
        key = rotated(reshape(self.k_proj(hidden), 0, 0, self.kv_heads, -1), *rotation).transpose(0, 1)
        value = reshape(self.v_proj(hidden), 0, 0, self.kv_heads, -1).transpose(0, 1)
        keys = torch.cat([past_key, key]).permute(1, 2, 3, 0)  # (B, H_kv, D, P + N)
        values = torch.cat([past_value, value]).permute(1, 2, 0, 3)  # (B, H_kv, P + N, D)
        query = reshape(query.transpose(1, 2), 0, self.kv_heads, -1, self.head_dim)  # (B, H_kv, H / H_kv * N, D)
        scores = reshape(torch.matmul(query, keys), 0, self.heads, -1, 0) + blocked  # (B, H, N, P + N)
        weights = reshape(torch.softmax(scores, dim=-1), 0, self.kv_heads, -1, 0)
        mixed = reshape(torch.matmul(weights, values), 0, self.heads, -1, self.head_dim).transpose(1, 2)
        return self.o_proj(reshape(mixed, 0, 0, -1)), key, value


class CachedLayer(nn.Module):
    """One layer of the language model."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm = Norm(layer.input_layernorm)
        self.post_attention_layernorm = Norm(layer.post_attention_layernorm)
        self.self_attn = CachedAttention(layer.self_attn)
        self.mlp = layer.mlp

    def forward(self, hidden: Tensor, *context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, key, value = self.self_attn(self.input_layernorm(hidden), *context)
        hidden = hidden + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), key, value


class Decoder(nn.Module):
    """Embedding, layers, norm and head."""

    inv_freq: Tensor

    def __init__(self, model: FusarForConditionalGeneration) -> None:
        super().__init__()
        language = model.model.language_model
        rope = language.rotary_emb
        if rope.rope_type not in ("default", "mrope"):
            raise ValueError(f"rope type {rope.rope_type} depends on the length; the graph knows default and mrope")
        self.embed_tokens = language.embed_tokens
        self.layers = nn.ModuleList(CachedLayer(layer) for layer in language.layers)
        self.norm, self.lm_head = Norm(language.norm), Head(model.lm_head)
        self.sections = list(language.config.rope_scaling["mrope_section"])
        self.rope_scaling = float(rope.attention_scaling)
        attention = language.layers[0].self_attn
        self.kv_shape = (attention.num_key_value_heads, attention.head_dim)
        self.half_dim, self.channels = attention.head_dim // 2, language.config.hidden_size
        self.register_buffer("inv_freq", rope.inv_freq.float(), persistent=False)

    def embedded(self, input_ids: Tensor, visual_tokens: Tensor, visual_index: Tensor) -> Tensor:
        """Text embeddings, with visual token i in the places where visual_index is i; -1 is text."""
        text = self.embed_tokens(input_ids)
        index = visual_index[..., None]  # (B, N, 1)
        is_text = index < 0
        # Where and not Clip, which TensorRT 8.6 has for floats only. The index of GatherElements has the result's
        # shape: adding zeros makes it, Expand would need a computed shape.
        place = torch.where(is_text, 0, index).long() + torch.zeros(self.channels, dtype=torch.long)
        return torch.where(is_text, text, torch.gather(visual_tokens, 1, place))

    def rotation(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos, signed sin [B, N, 1, D] of mRoPE: each section of the frequencies turns by its own axis."""
        # Products, not a MatMul with a constant: TensorRT may run a MatMul in TF32, which cannot hold an angle.
        time, row, column = position_ids.float()[..., None].unbind()
        first, second, third = self.inv_freq.split(self.sections)
        angle = torch.cat([time * first, row * second, column * third], dim=-1)
        angle = torch.cat([angle, angle], dim=-1).unsqueeze(2)
        return angle.cos() * self.rope_scaling, signed(angle.sin() * self.rope_scaling, self.half_dim)

    def forward(
        self, input_ids: Tensor, visual_tokens: Tensor, visual_index: Tensor, position_ids: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> logits [B, V] of the last position, new [N, L, 2, B, H_kv, D]."""
        cached, tokens = past.shape[0], input_ids.shape[1]
        hidden = self.embedded(input_ids, visual_tokens, visual_index)
        cos, sin = self.rotation(position_ids)
        place = torch.arange(cached + tokens)
        blocked = (place[None] > place[cached:, None]).to(hidden.dtype) * BLOCKED  # (N, P + N)
        new = []
        for index, layer in enumerate(self.layers):
            cache = cache_rows(past, index, 0), cache_rows(past, index, 1)
            hidden, key, value = layer(hidden, cos, sin, blocked, *cache)
            new += [key, value]
        logits = self.lm_head(self.norm(hidden[:, -1]))
        return logits, reshape(torch.stack(new, dim=1), 0, len(self.layers), 2, -1, *self.kv_shape)


class DecoderGraph(nn.Module):
    """What is exported: the decoder and its greedy choice."""

    def __init__(self, model: FusarForConditionalGeneration) -> None:
        super().__init__()
        self.config = copy.deepcopy(model.config)  # the exporter writes into it
        self.decoder = Decoder(model)

    def cache_row(self, batch: int) -> tuple[int, ...]:
        """Shape (L, 2, B, H_kv, D) of one token in the cache."""
        return (len(self.decoder.layers), 2, batch, *self.decoder.kv_shape)

    def forward(
        self, input_ids: Tensor, visual_tokens: Tensor, visual_index: Tensor, position_ids: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ids, visual_index [B, N], visual_tokens [B, T, C], position_ids [3, B, N], past [P, L, 2, B, H_kv, D]

        -> logits [B, V], next_ids [B] int32, new [N, L, 2, B, H_kv, D]. N, T >= 1, P >= 0; integers are int32.
        """
        logits, new = self.decoder(input_ids, visual_tokens, visual_index, position_ids, past)
        return logits, logits.argmax(-1).to(torch.int32), new

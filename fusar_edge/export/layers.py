"""Pieces that both graphs are made of, in the form that every TensorRT from 8.6 to 11 and ONNX Runtime take.

Reshapes carry constant shapes (0 copies a dimension, -1 is the rest): no shape is computed while running.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    @staticmethod
    def symbolic(g: Any, x: Any, shape: tuple[int, ...]) -> Any:
        return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))


def reshape(x: Tensor, *shape: int) -> Tensor:
    """ONNX's Reshape: 0 means the input's dimension at that place. One -1 is needed (and so a non-empty x)."""
    assert shape.count(-1) == 1, "torch 2.13's shape inference stops at a 0 without a -1"
    result: Tensor = _Reshape.apply(x, shape)
    return result


class _CacheRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, past: Tensor, layer: int, which: int) -> Tensor:
        return past[:, layer, which]

    @staticmethod
    def symbolic(g: Any, past: Any, layer: int, which: int) -> Any:
        starts, ends, axes = ([layer, which], [layer + 1, which + 1], [1, 2])
        bounds = [g.op("Constant", value_t=torch.tensor(value)) for value in (starts, ends, axes)]
        return g.op("Squeeze", g.op("Slice", past, *bounds), bounds[2])


def cache_rows(past: Tensor, layer: int, which: int) -> Tensor:
    """Keys (0) or values (1) of a layer, [P, B, H_kv, D], P >= 0, as one Slice.

    Indexing would be two Gathers, which copy the other half too; a Reshape cannot infer a size where P = 0.
    """
    rows: Tensor = _CacheRows.apply(past, layer, which)
    return rows


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.T

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any) -> Any:
        return g.op("Gemm", x, weight, transB_i=1)


class Head(nn.Module):
    """Language model head as Gemm, which takes the weight as it is: an embedding tied to it is stored once."""

    def __init__(self, lm_head: nn.Linear) -> None:
        super().__init__()
        self.weight = lm_head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, V]."""
        logits: Tensor = _Product.apply(hidden, self.weight)
        return logits


class Norm(nn.Module):
    """RMSNorm on the weight of Hugging Face's Qwen2RMSNorm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, float(norm.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


def signed(sin: Tensor, half: int) -> Tensor:
    """The sines of a rotation with the sign of its first half in them."""
    first, second = sin.split(half, dim=-1)
    return torch.cat([-first, second], dim=-1)


def rotated(x: Tensor, cos: Tensor, signed_sin: Tensor, half: int) -> Tensor:
    """Rotary embedding of the last axis, of 2 * half. (Not read from x: a traced size becomes nodes of the graph.)"""
    first, second = x.split(half, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * signed_sin

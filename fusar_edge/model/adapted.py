"""A language model whose LoRA is beside its linears, not merged into them: y = W x + b + B (A x)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig

from fusar_edge.errors import CheckpointError, InputError
from fusar_edge.model.weights import Weights

LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
"""Of a layer of the language model; each has a branch, so that an adapter of other targets fits as well."""
_LANGUAGE, _VISUAL = "model.language_model.layers.", "model.visual."


class AdaptedLinear(nn.Linear):
    """A linear of the base with a branch beside it. The scale of the LoRA is in `adapter_b`."""

    input_factors: Tensor | None = None
    """[in]: what SmoothQuant multiplied the columns by; None: nothing."""
    output_factors: Tensor | None = None
    """[out]: what it divided the rows by."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Takes over the parameters of `linear`; those of the branch are on the meta device."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.adapter_a = nn.Linear(self.in_features, rank, bias=False, device="meta")
        self.adapter_b = nn.Linear(rank, self.out_features, bias=False, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.adapter_b(self.adapter_a(x))
        return super().forward(x) + branch

    def fold_inputs(self, factors: Tensor) -> None:
        """The branch's share of a fold of the input's channels; `factors` [in]."""
        self.adapter_a.weight *= factors.to(self.adapter_a.weight.dtype)
        self.input_factors = factors if self.input_factors is None else self.input_factors * factors

    def fold_outputs(self, factors: Tensor) -> None:
        """The branch's share of a fold of the output's channels; `factors` [out]."""
        self.adapter_b.weight /= factors[:, None].to(self.adapter_b.weight.dtype)
        self.output_factors = factors if self.output_factors is None else self.output_factors * factors


@dataclass(frozen=True)
class Branch:
    """An adapter that stays beside the base."""

    name: str
    rank: int
    """Of the branches in the graph; an adapter of a smaller rank is filled up with zeros."""
    weights: Weights
    """The checkpoint with the LoRA of the language model apart, and the tower's merged."""

    def factors(self, layer: int, linear: str) -> tuple[Tensor, Tensor]:
        """A [rank, in], B [out, rank] of one of LINEARS, filled up with zeros."""
        name = weight_name(layer, linear)
        rows, columns = self.weights.shape(name)
        a, b = torch.zeros(self.rank, columns), torch.zeros(rows, self.rank)
        found = self.weights.factors(name)
        if found is not None:
            rank = len(found[0])
            a[:rank], b[:, :rank] = found
        return a, b


def weight_name(layer: int, linear: str) -> str:
    return f"{_LANGUAGE}{layer}.{linear}.weight"


def weight_names(config: Qwen2_5_VLConfig) -> list[str]:
    """Weights beside which there is a branch, in the order of the graph."""
    return [weight_name(i, part) for i in range(config.text_config.num_hidden_layers) for part in LINEARS]


def branch_of(name: str, weights: Weights, rank: int | None = None) -> Branch:
    """The LoRA of a checkpoint as a branch; `rank`: of the graph, else the LoRA's own, the largest of its linears.

    CheckpointError for a checkpoint without LoRA, or with one where no branch can be; InputError for too large a rank.
    """
    if not weights.lora_names:
        raise CheckpointError(
            f"adapter {name}: the checkpoint has no LoRA that is apart from its base: give a folder of the official "
            "form (adapter_config.json), trained on the recipe's base"
        )
    beside = weight_names(weights.config)
    others = sorted(n for n in weights.lora_names - set(beside) if not n.startswith(_VISUAL))
    if others:
        raise CheckpointError(
            f"adapter {name}: {weights.adapter} changes {others[0]} too, beside which the graph has no branch (it has "
            f"them beside {', '.join(part.rpartition('.')[2] for part in LINEARS)}): export it merged, without "
            "--adapter"
        )
    ranks = {n: len(found[0]) for n in beside if (found := weights.factors(n)) is not None}
    if not ranks:
        raise CheckpointError(f"adapter {name}: {weights.adapter} changes no linear of the language model")
    largest = max(ranks, key=lambda n: ranks[n])
    wanted = rank or ranks[largest]
    if ranks[largest] > wanted:
        raise InputError(
            f"adapter {name}: its LoRA of {largest.removesuffix('.weight')} has rank {ranks[largest]}, the branches of "
            f"the graph have rank {wanted}: export with --adapter-rank {ranks[largest]} or more"
        )
    return Branch(name, wanted, weights.apart(beside))


def with_branches(layer: Any, rank: int) -> Any:
    """Put AdaptedLinear in the place of a layer's linears, in place; their branches hold nothing yet. The layer."""
    for part in LINEARS:
        parent, _, leaf = part.rpartition(".")
        module = layer.get_submodule(parent)
        setattr(module, leaf, AdaptedLinear(getattr(module, leaf), rank).eval())
    return layer


@torch.no_grad()
def adapt_layer(layer: Any, index: int, branch: Branch) -> Any:
    """The same with the base's weights and the adapter's branches."""
    with_branches(layer, branch.rank)
    for part in LINEARS:
        made = layer.get_submodule(part)
        made.weight = nn.Parameter(branch.weights.tensor(weight_name(index, part)), requires_grad=False)
        a, b = branch.factors(index, part)
        made.adapter_a.weight = nn.Parameter(a, requires_grad=False)
        made.adapter_b.weight = nn.Parameter(b, requires_grad=False)
    return layer


def adapt_model(model: Any, branch: Branch) -> None:
    """The whole model's language LoRA, which is merged, is taken apart again, exactly: the base is read anew."""
    for index, layer in enumerate(model.model.language_model.layers):
        adapt_layer(layer, index, branch)


def adapted_linears(layers: Any) -> Iterator[tuple[str, AdaptedLinear]]:
    """(name in the graph, linear) of the layers of a language model, or of its graph, in the order of the layout."""
    for index, layer in enumerate(layers):
        for part in LINEARS:
            linear = layer.get_submodule(part)
            if isinstance(linear, AdaptedLinear):
                yield f"decoder.layers.{index}.{part}", linear


def vision_lora_sha256(weights: Weights) -> str:
    """Of the tower's LoRA, which is merged into vision.onnx; "" where there is none."""
    digest, any_of = hashlib.sha256(), False
    for name in sorted(n for n in weights.lora_names if n.startswith(_VISUAL)):
        found = weights.factors(name)
        assert found is not None
        any_of = True
        digest.update(name.encode())
        for value in found:
            digest.update(f" {tuple(value.shape)} ".encode())
            digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    return digest.hexdigest() if any_of else ""

"""One layer of the model with its weights: Hugging Face's module, and the same parameters in the form of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLPatchMerger,
    Qwen2_5_VLVisionBlock,
)

from fusar_edge.calib.smoothquant.seams import Seam, block_seams, head_seam, layer_seams, merger_seam
from fusar_edge.export.baking.basis import Basis
from fusar_edge.export.decoder_graph import CachedLayer
from fusar_edge.export.layers import Head, Norm
from fusar_edge.export.lean.parts import HEAD
from fusar_edge.export.vision_graph import Merger, PatchEmbedding, planned_block, tower_plan
from fusar_edge.model.adapted import Branch, adapt_layer
from fusar_edge.model.tlm import BakedModulation, TokenModulation
from fusar_edge.model.weights import Weights

VISUAL, LANGUAGE = "model.visual.", "model.language_model."
PATCHES, MERGER, TLM = "vision.patch_embed", "vision.merger", "tlm"


@dataclass(frozen=True)
class Layer:
    """A part of a graph with its weights."""

    name: str
    """As in fusar_edge.export.lean.parts."""
    graph: nn.Module
    """What the part computes; its parameters are those of `linears` and `seams`."""
    prefix: str
    """Of the names of its tensors in the graph."""
    seams: tuple[Seam, ...] = ()
    float_head: nn.Linear | None = None
    """Of the head: what multiplies, so that its input can be watched."""

    def linears(self) -> Mapping[str, nn.Module]:
        """Layer name in the graph -> module whose input is the activation."""
        if self.float_head is not None:
            return {"decoder.lm_head": self.float_head}
        if self.name == PATCHES:
            return {PATCHES: self.graph}
        return {f"{self.prefix}{path}": m for path, m in self.graph.named_modules() if isinstance(m, nn.Linear)}

    def tensors(self) -> dict[str, Tensor]:
        """Name in the graph -> value in the graph's layout: the weight of a MatMul stands [in, out]."""
        found = {}
        for key, value in self.graph.state_dict().items():
            path, _, leaf = key.rpartition(".")
            turned = leaf == "weight" and isinstance(self.graph.get_submodule(path), nn.Linear)
            found[f"{self.prefix}{key}"] = value.T if turned else value
        return found


class Layers:
    """Makes one layer at a time. Nothing is kept of it here."""

    def __init__(self, weights: Weights, basis: Basis | None = None, branch: Branch | None = None) -> None:
        """`branch`: what the graph keeps beside the weights; Hugging Face's modules have it merged."""
        self.weights, self.config, self.basis, self.branch = weights, weights.config, basis, branch
        for part in (self.config, self.config.vision_config, self.config.text_config):
            part._attn_implementation = "sdpa"
        self.plan = tower_plan(self.config.vision_config, self.config.fusar["image_size"])

    @property
    def tied(self) -> bool:
        """Head and embedding are one tensor."""
        return bool(self.config.text_config.tie_word_embeddings or self.config.tie_word_embeddings)

    def names(self) -> list[str]:
        """Of all layers, in the order of the two graphs."""
        depth, layers = self.config.vision_config.depth, self.config.text_config.num_hidden_layers
        vision = [PATCHES, *(f"vision.blocks.{i}" for i in range(depth)), MERGER, TLM]
        return [*vision, *(f"decoder.layers.{i}" for i in range(layers)), HEAD]

    def load(self, name: str) -> Layer:
        """Float32, in eval mode, without gradients."""
        loaders: dict[str, Callable[[], Layer]] = {
            PATCHES: self._patches, MERGER: self._merger, TLM: self._tlm, HEAD: self._head
        }  # fmt: skip
        if name in loaders:
            return loaders[name]()
        stem, _, index = name.rpartition(".")
        return self._block(int(index)) if stem == "vision.blocks" else self._layer(int(index))

    def block(self, index: int) -> nn.Module:
        """Hugging Face's."""
        vision = self.config.vision_config
        return self.filled(lambda: Qwen2_5_VLVisionBlock(vision), f"{VISUAL}blocks.{index}.")

    def layer(self, index: int) -> nn.Module:
        """Hugging Face's."""
        text = self.config.text_config
        return self.filled(lambda: Qwen2_5_VLDecoderLayer(text, index), f"{LANGUAGE}layers.{index}.")

    def merger(self) -> nn.Module:
        """Hugging Face's."""
        vision = self.config.vision_config
        make = lambda: Qwen2_5_VLPatchMerger(vision.out_hidden_size, vision.hidden_size, vision.spatial_merge_size)  # noqa: E731
        return self.filled(make, f"{VISUAL}merger.")

    def norm(self) -> nn.Module:
        """Hugging Face's last one."""
        text = self.config.text_config
        return self.filled(lambda: Qwen2RMSNorm(text.hidden_size, eps=text.rms_norm_eps), f"{LANGUAGE}norm.")

    def filled(self, make: Callable[[], nn.Module], prefix: str) -> nn.Module:
        """A module of Hugging Face with the checkpoint's tensors below `prefix`."""
        with torch.device("meta"):
            module = make()
        state = {key: self.weights.tensor(prefix + key) for key, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True, strict=False)
        return module.eval().requires_grad_(False)

    def _patches(self) -> Layer:
        weight = self.weights.tensor(f"{VISUAL}patch_embed.proj.weight")
        return Layer(PATCHES, PatchEmbedding(weight, self.plan.order).eval(), f"{PATCHES}.")

    def _block(self, index: int) -> Layer:
        block, name = self.block(index), f"vision.blocks.{index}"
        graph = planned_block(block, index, self.config.vision_config, self.plan)
        return Layer(name, graph.eval(), f"{name}.", tuple(block_seams(block, name)))

    def _merger(self) -> Layer:
        merger = self.merger()
        return Layer(MERGER, Merger(merger, self.plan.inverse).eval(), f"{MERGER}.", (merger_seam(merger),))

    def modulation(self) -> TokenModulation:
        """TLM with its MLP."""
        vision, fusar = self.config.vision_config, self.config.fusar
        patches = fusar["image_size"] // vision.patch_size
        with torch.device("meta"):
            tlm = TokenModulation(
                vision.out_hidden_size,
                patches,
                patches // vision.spatial_merge_size,
                fusar["sigma"],
                fusar["hidden_mult"],
            )
        tlm.film_mlp.load_state_dict(self.weights.tlm_state(), assign=True)
        return tlm.eval().requires_grad_(False)

    def _tlm(self) -> Layer:
        graph: nn.Module = self.modulation()
        if self.basis is not None:
            mean, basis = (torch.from_numpy(part) for part in (self.basis.mean, self.basis.basis))
            graph = BakedModulation(self.modulation(), mean, basis)
        return Layer(TLM, graph, f"{TLM}.")

    def _layer(self, index: int) -> Layer:
        layer, name = self.layer(index), f"decoder.layers.{index}"
        if self.branch is not None:
            adapt_layer(layer, index, self.branch)
        return Layer(name, CachedLayer(layer).eval(), f"{name}.", tuple(layer_seams(layer, name)))

    def _head(self) -> Layer:
        norm = self.norm()
        head = nn.Linear(1, 1, bias=False, device="meta")
        head.weight = nn.Parameter(self.weights.tensor("lm_head.weight"), requires_grad=False)
        head.out_features, head.in_features = head.weight.shape
        graph = nn.ModuleDict({"norm": Norm(norm), "lm_head": Head(head)})
        return Layer(HEAD, graph, "decoder.", (head_seam(norm, head),), head)


def embedding_rows(weights: Weights, ids: Tensor) -> Tensor:
    """Rows [len(ids), C] of the embedding, each read by itself; ids that repeat are read once."""
    unique, place = ids.flatten().unique(return_inverse=True)
    rows = [weights.rows(f"{LANGUAGE}embed_tokens.weight", int(i), int(i) + 1) for i in unique]
    return torch.cat(rows)[place].reshape(*ids.shape, -1)


def embedding_blocks(weights: Weights, rows: int = 8192) -> Iterator[Tensor]:
    """The embedding from top to bottom."""
    name = f"{LANGUAGE}embed_tokens.weight"
    for start in range(0, weights.shape(name)[0], rows):
        yield weights.rows(name, start, min(start + rows, weights.shape(name)[0]))


def numpy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().numpy() for name, value in tensors.items()}

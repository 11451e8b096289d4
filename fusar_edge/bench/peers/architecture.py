"""A bundle's graphs -> the config of the network that they were exported from.

A bundle carries no recipe of its model, but its graphs say all of it: shapes of weights, and constants of nodes that
are named by layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.bench.peers.weights import Weights
from fusar_edge.errors import BundleError
from fusar_edge.runtime.bundle import BundleSettings

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Architecture:
    """What Hugging Face's config, and llama.cpp's, are made of."""

    vision: dict[str, Any]
    """Keys of Qwen2_5_VLVisionConfig."""
    text: dict[str, Any]
    """Keys of Qwen2_5_VLTextConfig, and mrope_section."""
    sigma: float
    """Of TLM, in patches."""


def architecture_from(
    settings: BundleSettings, graphs: tuple[ModelProto, ModelProto], weights: tuple[Weights, Weights]
) -> Architecture:
    """Of (vision, decoder) in FP32. BundleError where a graph is not what `fusar-edge export` writes."""
    try:
        nodes = [_Nodes(graph) for graph in graphs]
        return Architecture(_vision(nodes[0], weights[0]), _text(nodes[1], weights[1], settings), _sigma(nodes[0]))
    except (KeyError, IndexError, StopIteration) as problem:
        raise BundleError(
            f"the graphs of this bundle lack {problem}, by which the network is read back: build the bundle from what "
            "`fusar-edge export` of this version writes"
        ) from None


class _Nodes:
    """Nodes by name, with the values of their constant inputs."""

    def __init__(self, model: ModelProto) -> None:
        from onnx import numpy_helper

        self.by_name = {node.name: node for node in model.graph.node}
        self.constants = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t)
            for node in model.graph.node
            if node.op_type == "Constant"
        } | {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def constant(self, name: str) -> npt.NDArray[Any]:
        """The constant input of a node."""
        return next(self.constants[i] for i in self.by_name[name].input if i in self.constants)

    def shapes(self, layer: str) -> list[list[int]]:
        """Targets of the Reshapes of a layer."""
        names = [n for n in self.by_name if n.startswith(f"{layer}/Reshape")]
        return [[int(size) for size in self.constant(name)] for name in names]


def _depth(weights: Weights, layer: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(rf"{re.escape(layer)}\.(\d+)\.", name)))


def _vision(nodes: _Nodes, weights: Weights) -> dict[str, Any]:
    width, _, _, patch = weights["vision.patch_embed.weight"].shape
    depth = _depth(weights, "vision.blocks")
    merge = round((weights["vision.merger.mlp.0.weight"].shape[1] / width) ** 0.5)
    heads = next(s[3] for s in nodes.shapes("vision.blocks.0.attn") if len(s) == 5)
    # Patches in the largest window of each block: (-1, size, heads, head_dim).
    windows = [max(s[1] for s in nodes.shapes(f"vision.blocks.{i}.attn") if len(s) == 4) for i in range(depth)]
    patches = nodes.constant("vision.patch_embed/Gather").size
    full = [i for i, size in enumerate(windows) if size == patches]
    return {
        "depth": depth,
        "hidden_size": width,
        "num_heads": heads,
        "intermediate_size": weights["vision.blocks.0.mlp.gate_proj.weight"].shape[0],
        "out_hidden_size": weights["vision.merger.mlp.2.weight"].shape[0],
        "patch_size": patch,
        "spatial_merge_size": merge,
        "window_size": round(min(windows) ** 0.5) * patch,
        "fullatt_block_indexes": full,
    }


def _text(nodes: _Nodes, weights: Weights, settings: BundleSettings) -> dict[str, Any]:
    layer = "decoder.layers.0"
    frequencies = [nodes.constant(f"decoder/{name}") for name in ("Mul", "Mul_1", "Mul_2")]
    queries = weights[f"{layer}.self_attn.q_proj.weight"].shape[0]
    return {
        "hidden_size": weights["decoder.embed_tokens.weight"].shape[1],
        "intermediate_size": weights[f"{layer}.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": _depth(weights, "decoder.layers"),
        "num_attention_heads": queries // settings.head_dim,
        "num_key_value_heads": settings.kv_heads,
        "rms_norm_eps": float(np.float32(nodes.constant(f"{layer}.input_layernorm/Add")).round(12)),
        "rope_theta": _theta(np.concatenate(frequencies), settings.head_dim),
        "mrope_section": [f.size for f in frequencies],
    }


def _theta(frequencies: npt.NDArray[np.float32], head_dim: int) -> float:
    """Base of the rotary frequencies theta^(-2 i / D), from the lowest."""
    last = head_dim // 2 - 1
    return float(f"{float(frequencies[last]) ** (-head_dim / (2 * last)):.5g}")


def _sigma(nodes: _Nodes) -> float:
    """The Gaussian is exp(-d / (2 sigma^2)): the only Div of TLM by a constant."""
    divisions = [node for name, node in nodes.by_name.items() if name.startswith("tlm/Div")]
    values = [nodes.constants[i] for node in divisions for i in node.input if i in nodes.constants]
    return float((next(v for v in values if v.dtype == np.float32) / 2) ** 0.5)

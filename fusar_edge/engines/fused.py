"""The decoder for ONNX Runtime on a CPU: ten large nodes a layer (com.microsoft) in place of some hundred small ones.

The same network, and the same INT8 codes, as the graph that `calibrate` wrote. What differs: activations are quantised
as they come, BLOCK numbers of a row at a time, not by calibrated ranges; linears that the recipe kept in float become
INT8 by blocks; keys and values stay in two buffers a layer, [1, H_kv, capacity, D], which attention reads and extends
in place. A graph in FP32 keeps its float linears.

Inputs and outputs: fusar_edge.runtime.contract. ONNX Runtime's operators: its docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.engines.layer_source import FREQUENCIES, ROPE_SCALES, Array, LayerSource, Weight
from fusar_edge.errors import InputError
from fusar_edge.runtime.bundle import DECODER, BundleSettings, FusedFacts
from fusar_edge.runtime.contract import Tensors, graph_contract

if TYPE_CHECKING:
    from onnx import ModelProto

BLOCK = 128
"""Inputs of a linear that share a scale. fusar-tiny, one core with VNNI, a step after 110 tokens: 705 us with 32, 616
with 64, 544 with 128, 523 with 256; 1 - cosine of the logits with FP32's: 2.2e-5, -, 3.2e-5, 4.3e-5 (Q/DQ: 6.3e-5)."""
OPSET, IR_VERSION, DOMAIN = 17, 8, "com.microsoft"
MERGED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Product of the fused graph -> the linears whose outputs it gives side by side."""
INTEGERS = ("input_ids", "visual_index", "rows_in_use", "last_row", "next_ids")
ZERO = 128
"""MatMulNBits holds code c as the byte c + 128."""


def fused(model: ModelProto, settings: BundleSettings) -> tuple[ModelProto, FusedFacts]:
    """The decoder of a bundle with `settings`, fused. InputError where `model` is not what `export` writes."""
    try:
        source = LayerSource(model)
        facts = _facts(source)
        writer = _Writer(source, settings)
        writer.decoder()
    except KeyError as problem:
        raise InputError(
            f"the decoder lacks {problem.args[0]}, by which it is fused: export it with this version, or set "
            'decoder = "plain" in the spec'
        ) from None
    return writer.model(facts), facts


def _facts(source: LayerSource) -> FusedFacts:
    if any(float(source.constant(name)) != 1.0 for name in ROPE_SCALES):
        raise InputError('a scaled rotary embedding is not fused: set decoder = "plain" in the spec')
    parts = [source.constant(name).ravel() for name in FREQUENCIES]
    time, row, column = (part.size for part in parts)
    return FusedFacts(sections=(time, row, column), frequencies=tuple(map(float, np.concatenate(parts))))


class _Writer:
    """Nodes and weights of the fused graph, in order."""

    def __init__(self, source: LayerSource, settings: BundleSettings) -> None:
        self.source, self.settings = source, settings
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.epsilon = float(source.constant("decoder.layers.0.input_layernorm/Add"))

    def decoder(self) -> None:
        hidden, mixed = self.embedded(), ""
        for index in range(self.source.depth()):
            layer = f"decoder.layers.{index}"
            hidden, x = self.norm(f"{layer}.input_layernorm", hidden, mixed)
            mixed = self.attention(index, x)
            hidden, x = self.norm(f"{layer}.post_attention_layernorm", hidden, mixed)
            mixed = self.mlp(f"{layer}.mlp", x)
        _, x = self.norm("decoder.norm", hidden, mixed)
        x = self.node("Gather", "decoder.last", [x, self.tensor("last", np.array(-1))], axis=1)
        self.linear("decoder.lm_head", x, output="logits")
        best = self.node("ArgMax", "decoder.best", ["logits"], axis=-1, keepdims=0)
        self.node("Cast", "decoder.next", [best], ["next_ids"], to=6)  # INT32

    def embedded(self) -> str:
        """Rows of the table, or visual tokens where visual_index says so."""
        table = self.source.constant("decoder.embed_tokens")
        name = self.source.nodes["decoder.embed_tokens"].input[0]
        text = self.node("Gather", "decoder.embed_tokens", [self.tensor(name, table), "input_ids"])
        if table.dtype != np.float32:
            text = self.node("Cast", "decoder.text", [text], to=1)  # FLOAT
        # Index -1 takes the last visual token, which Where then leaves.
        seen = self.node("Gather", "decoder.see", ["visual_tokens", "visual_index"], axis=1)  # (1, 1, N, C)
        seen = self.node("Squeeze", "decoder.seen", [seen, self.tensor("axis", np.array([1]))])
        is_text = self.node("Less", "decoder.is_text", ["visual_index", self.tensor("none", np.array(0, np.int32))])
        is_text = self.node("Unsqueeze", "decoder.is_text_row", [is_text, self.tensor("rows", np.array([-1]))])
        return self.node("Where", "decoder.embedded", [is_text, text, seen])

    def norm(self, name: str, hidden: str, mixed: str) -> tuple[str, str]:
        """hidden + mixed, and its norm; `mixed` "" is nothing."""
        weight = self.tensor(f"{name}.weight", self.source.constant(f"{name}/Mul"))
        if not mixed:
            op = "SimplifiedLayerNormalization"
            return hidden, self.node(op, name, [hidden, weight], axis=-1, epsilon=self.epsilon)
        outputs = [f"{name}_output", "", "", f"{name}_sum"]
        op = "SkipSimplifiedLayerNormalization"
        self.own(op, name, [hidden, mixed, weight], outputs, epsilon=self.epsilon)
        return outputs[3], outputs[0]

    def attention(self, index: int, x: str) -> str:
        name, s = f"decoder.layers.{index}.self_attn", self.settings
        bias = np.concatenate([self.source.constant(f"{part}/Add") for part in parts_of(f"{name}.qkv_proj")])
        x = self.linear(f"{name}.qkv_proj", x, bias)
        inputs = [x, "", "", f"keys.{index}", f"values.{index}", "last_row", "rows_in_use", "cos", "sin"]
        outputs = [f"{name}_output", f"new_keys.{index}", f"new_values.{index}"]
        heads = bias.size // s.head_dim - 2 * s.kv_heads
        shape = {"num_heads": heads, "kv_num_heads": s.kv_heads, "do_rotary": 1}
        return self.linear(f"{name}.o_proj", self.own("GroupQueryAttention", name, inputs, outputs, **shape))

    def mlp(self, name: str, x: str) -> str:
        gate, up = f"{name}.gate", f"{name}.up"
        both = self.linear(f"{name}.gate_up_proj", x)
        self.node("Split", f"{name}.split", [both], [gate, up], axis=-1)
        silu = self.own("QuickGelu", f"{name}.act_fn", [gate], alpha=1.0)
        return self.linear(f"{name}.down_proj", self.node("Mul", f"{name}.mul", [silu, up]))

    def linear(self, name: str, x: str, bias: Array | None = None, output: str = "") -> str:
        weights, outputs = self.source.weights(parts_of(name)), [output or f"{name}_output"]
        if self.settings.precision == "fp32":
            return self.float_linear(name, x, weights, bias, outputs)
        codes, scale = (np.concatenate(part) for part in zip(*map(block_codes, weights), strict=True))
        inputs = [x, self.tensor(f"{name}.codes", codes), self.tensor(f"{name}.scale", scale.ravel())]
        inputs += [] if bias is None else ["", "", self.tensor(f"{name}.bias", bias)]
        shape = {"K": weights[0].values.shape[1], "N": len(codes), "bits": 8, "block_size": BLOCK}
        return self.own("MatMulNBits", name, inputs, outputs, accuracy_level=4, **shape)  # 4: INT8 arithmetic

    def float_linear(self, name: str, x: str, weights: list[Weight], bias: Array | None, outputs: list[str]) -> str:
        if name == "decoder.lm_head":  # as it is: the embedding may be the same tensor
            shared = self.tensor(self.source.place(name).values, weights[0].values)
            return self.node("Gemm", name, [x, shared], outputs, transB=1)
        weight = self.tensor(f"{name}.weight", np.concatenate([w.values for w in weights]).T)
        if bias is None:
            return self.node("MatMul", name, [x, weight], outputs)
        product = self.node("MatMul", name, [x, weight], [f"{name}_product"])
        return self.node("Add", f"{name}.add", [product, self.tensor(f"{name}.bias", bias)], outputs)

    def own(self, op: str, name: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        return self.node(op, name, inputs, outputs, domain=DOMAIN, **attributes)

    def node(self, op: str, name: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        from onnx import helper

        outputs = outputs or [f"{name}_output"]
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))
        return outputs[0]

    def tensor(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def model(self, facts: FusedFacts) -> ModelProto:
        from onnx import helper

        inputs, outputs = graph_contract(msgspec.structs.replace(self.settings, fused=facts))[DECODER]
        tensors = list(self.tensors.values())
        graph = helper.make_graph(self.nodes, "decoder", _values(inputs), _values(outputs), tensors)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fusar-edge")


def parts_of(name: str) -> list[str]:
    """Linears of the source that one product of the fused graph stands for."""
    layer, _, last = name.rpartition(".")
    return [f"{layer}.{part}" for part in MERGED.get(last, (last,))]


def block_codes(weight: Weight) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Bytes [out, blocks, BLOCK] and scales [out, blocks]: the calibrated ones, or for floats those of each block."""
    out, width = weight.values.shape
    blocks = -(-width // BLOCK)
    cut = np.zeros((out, blocks * BLOCK), weight.values.dtype)
    cut[:, :width] = weight.values
    cut = cut.reshape(out, blocks, BLOCK)
    if weight.scale is not None:
        return (cut.astype(np.int16) + ZERO).astype(np.uint8), np.repeat(weight.scale[:, None], blocks, 1)
    largest = np.abs(cut).max(-1)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return (np.rint(cut / scale[..., None]).clip(-127, 127) + ZERO).astype(np.uint8), scale


def _values(tensors: Tensors) -> list[Any]:
    from onnx import TensorProto, helper

    kinds = {name: TensorProto.INT32 if name in INTEGERS else TensorProto.FLOAT for name in tensors}
    return [
        helper.make_tensor_value_info(n, kinds[n], [f"{n}_{i}" if size is None else size for i, size in enumerate(s)])
        for n, s in tensors.items()
    ]

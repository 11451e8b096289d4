"""What a layer gives, under one name in PyTorch, in the graphs of `export` and `calibrate`, and in a fused decoder.

The names are those of fusar_edge.export.naming. A linear is tapped behind its bias, the patch embedding behind the
reordering of its patches, a norm behind its weight. What a step adds to the cache is `decoder.layers.N.cache.key` and
`.value`; the ends of the two graphs are `vision.tokens` and `decoder.logits`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.outliers import SUFFIX
from fusar_edge.calib.qdq import BRANCH
from fusar_edge.calib.ranges import session_with_outputs
from fusar_edge.calib.tiles.samples import Feeds
from fusar_edge.engines.fused import MERGED
from fusar_edge.runtime.backend import Cache, Floats, Int32, Step
from fusar_edge.runtime.bundle import DECODER, Bundle
from fusar_edge.runtime.ort_fused import FusedCache, FusedOrtBackend

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

Array = npt.NDArray[Any]
Values = dict[str, Array]
"""Layer -> what it gave in one run, in the order of the graph; channels last."""

TOKENS, LOGITS = "vision.tokens", "decoder.logits"
FUSED_LAYERS = ("MatMulNBits", "MatMul", "Gemm", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")


def plain_tensors(model: ModelProto) -> dict[str, str]:
    """Layer -> tensor of its output, in a graph of `export` or `calibrate`: linears, norms, embeddings."""
    made = {node.name: node.output[0] for node in model.graph.node}
    tensors = set(made.values())
    found = {}
    for node in model.graph.node:
        layer, _, operator = node.name.partition("/")
        if operator == "Mul" and made.get(f"{layer}/Div") in node.input:  # weight * (x / root of its mean square)
            found[layer] = node.output[0]
        if operator or "." not in layer or layer.endswith((SUFFIX, *BRANCH)):
            continue
        if node.op_type == "Conv":
            found[layer] = made[f"{layer}/Gather"]
        elif node.op_type in ("MatMul", "Gemm", "Gather"):
            # The tensor of that name is whole: behind the cast of a table in FP16, behind the sum with outliers.
            whole = f"{layer}_output" if f"{layer}_output" in tensors else node.output[0]
            found[layer] = made.get(f"{layer}/Add", whole)
            if f"{layer}{BRANCH[0]}" in made:  # the sum with an adapter's branch comes last
                found[layer] = made.get(f"{layer}/Add_1", found[layer])
    return found


def fused_tensors(model: ModelProto) -> dict[str, str]:
    """The same of a decoder that fusar_edge.engines.fused wrote; what it merged is under the merged name."""
    found = {}
    for node in model.graph.node:
        if node.op_type in FUSED_LAYERS or node.name == "decoder.embed_tokens":
            found[node.name] = node.output[0]
        elif node.op_type == "Add" and node.name.removesuffix(".add") in found:
            found[node.name.removesuffix(".add")] = node.output[0]
        elif node.name == "decoder.last":  # the plain graph's last norm sees the last token alone
            found["decoder.norm"] = node.output[0]
    return found


def split_merged(values: Values, kv_width: int) -> Values:
    """Queries, keys and values apart, gate and up apart. `kv_width`: H_kv * D."""
    result: Values = {}
    for name, value in values.items():
        layer, _, last = name.rpartition(".")
        cuts = [-2 * kv_width, -kv_width] if last == "qkv_proj" else [value.shape[-1] // 2]
        parts = MERGED.get(last)
        if parts is None:
            result[name] = value
        else:
            pieces = np.split(value, [value.shape[-1] + cut if cut < 0 else cut for cut in cuts], axis=-1)
            result |= {f"{layer}.{part}": piece for part, piece in zip(parts, pieces, strict=True)}
    return result


def with_outputs(layers: Values, new: Array, logits: Array) -> Values:
    """`layers` of one step with what it added to the cache, behind `v_proj` where there is one, and its logits.

    new [N, L, 2, B, H_kv, D]; a row of the cache is its heads side by side.
    """
    rows = new.reshape(*new.shape[:3], -1)  # (N, L, 2, B * H_kv * D)
    cache = {
        f"decoder.layers.{layer}.cache.{kind}": rows[:, layer, which]
        for layer in range(rows.shape[1])
        for which, kind in enumerate(("key", "value"))
    }
    result: Values = {}
    for name, value in layers.items():
        result[name] = value
        layer, _, last = name.rpartition(".self_attn.")
        if last == "v_proj":
            result |= {f"{layer}.cache.{kind}": cache[f"{layer}.cache.{kind}"] for kind in ("key", "value")}
    return result | cache | {LOGITS: logits}


class HookedGraph:
    """One of the two graphs in PyTorch."""

    def __init__(self, graph: nn.Module, outputs: tuple[str, ...]) -> None:
        """`outputs`: names of what `graph` returns."""
        from torch import nn

        from fusar_edge.export.layers import Head, Norm
        from fusar_edge.export.vision_graph import PatchEmbedding

        self.graph, self.outputs = graph.eval(), outputs
        self._values: Values = {}
        for name, module in graph.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | Head | Norm | PatchEmbedding):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._values[name] = output.numpy()

        return keep

    def run(self, feed: Feeds) -> tuple[Values, Values]:
        """(layers, outputs)."""
        import torch

        self._values = {}
        with torch.inference_mode():
            found = self.graph(**{name: torch.from_numpy(np.array(value)) for name, value in feed.items()})
        found = (found,) if isinstance(found, torch.Tensor) else found
        return self._values, {name: value.numpy() for name, value in zip(self.outputs, found, strict=True)}


class TappedGraph:
    """A graph of `export` or `calibrate` in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, outputs: tuple[str, ...]) -> None:
        """`outputs`: those of the graph that are wanted."""
        import onnx

        self.layers, self.outputs = plain_tensors(onnx.load(path, load_external_data=False)), outputs
        self._names = list(dict.fromkeys([*self.layers.values(), *outputs]))
        self._session = session_with_outputs(path, self._names)

    def run(self, feed: Feeds) -> tuple[Values, Values]:
        """(layers, outputs)."""
        contiguous = {name: np.ascontiguousarray(value) for name, value in feed.items()}
        found = dict(zip(self._names, self._session.run(None, contiguous), strict=True))
        return {name: found[tensor] for name, tensor in self.layers.items()}, {k: found[k] for k in self.outputs}


class TappedFused(FusedOrtBackend):
    """The runtime's backend, whose session gives the layers beside what the runtime asks for."""

    def __init__(self, bundle: Bundle) -> None:
        import onnx

        super().__init__(bundle)
        path = bundle.file(DECODER)
        model = onnx.load(path, load_external_data=False)
        self.layers = fused_tensors(model)
        outputs = [value.name for value in model.graph.output]
        self._inner = [tensor for tensor in self.layers.values() if tensor not in outputs]
        self._decoder = session_with_outputs(path, [*outputs, *self._inner])
        self.values: Values = {}

    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        assert isinstance(cache, FusedCache)
        for tensor in self._inner:  # anew each time: what was allocated for a run fits its number of tokens alone
            cache.binding.bind_output(tensor, "cpu")
        found = super().step(cache, input_ids, visual_tokens, visual_index, position_ids)
        inner = cache.binding.get_outputs()[-len(self._inner) :]
        tensors = {"logits": found.logits.copy()} | {
            tensor: value.numpy() for tensor, value in zip(self._inner, inner, strict=True)
        }
        self.values = {name: tensors[tensor] for name, tensor in self.layers.items()}
        return found

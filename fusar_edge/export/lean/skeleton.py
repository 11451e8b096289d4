"""The two graphs without weights: traced on modules whose linears multiply nothing.

A linear is in the graph what it always is, MatMul of a weight; while tracing it gives zeros of the right shape, and its
weight is one number. Afterwards every constant that comes from a checkpoint is declared with its shape and no data.
The graph is node for node that of the whole model (a test compares them).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from optimum.exporters.onnx.base import OnnxConfig
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig

from fusar_edge.export.baking.basis import Basis
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import check_operators, traced
from fusar_edge.export.layers import Head
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig, FusarVisionOnnxConfig
from fusar_edge.export.vision_graph import VisionGraph
from fusar_edge.model.adapted import AdaptedLinear, with_branches
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.runtime.bundle import DECODER, VISION


def empty_model(config: Qwen2_5_VLConfig) -> FusarForConditionalGeneration:
    """The network on PyTorch's meta device: shapes and no memory. Its rotary frequencies are real."""
    config = copy.deepcopy(config)
    with torch.device("meta"):
        model = FusarForConditionalGeneration(config)
    language: Any = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config.text_config)
    return model.eval()


def skeletons(
    config: Qwen2_5_VLConfig, folder: Path, basis: Basis | None = None, opset: int = 17, rank: int | None = None
) -> dict[str, onnx.ModelProto]:
    """vision.onnx and decoder.onnx, every weight declared and none held. `folder`: for the exporter's own files.

    `rank`: of the branches beside the decoder's linears.
    """
    model = empty_model(config)
    if rank is not None:
        for layer in model.model.language_model.layers:
            with_branches(layer, rank)
    vision, decoder = VisionGraph(model, basis).eval(), DecoderGraph(model).eval()
    return {
        VISION: _skeleton(vision, FusarVisionOnnxConfig(vision.config), folder, opset, VISION),
        DECODER: _skeleton(decoder, FusarDecoderOnnxConfig(decoder.config), folder, opset, DECODER),
    }


def kept_skeletons(folder: Path, make: Callable[[], dict[str, onnx.ModelProto]]) -> dict[str, onnx.ModelProto]:
    """What `make` gives, read again from `folder` where an export goes on (tracing takes half a minute at 504 px)."""
    paths = {name: folder / f"skeleton-{name}" for name in (VISION, DECODER)}
    if all(path.is_file() for path in paths.values()):
        return {name: onnx.load(path, load_external_data=False) for name, path in paths.items()}
    made = make()
    for name, model in made.items():
        unfinished = paths[name].with_suffix(".tmp")
        unfinished.write_bytes(model.SerializeToString())
        unfinished.rename(paths[name])
    return made


def _skeleton(module: nn.Module, config: OnnxConfig, folder: Path, opset: int, name: str) -> onnx.ModelProto:
    shapes = dict(_hollow(module))
    with torch.no_grad():
        model = traced(module, config, folder, opset)
    check_operators(model, name)
    for tensor in model.graph.initializer:
        declare(tensor, tensor.name, shapes.get(tensor.name, tuple(tensor.dims)), TensorProto.FLOAT)
    return model


def declare(tensor: TensorProto, name: str, shape: tuple[int, ...], kind: int) -> TensorProto:
    """A constant with a shape and no data; where the data lies is said when it is written."""
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, TensorProto.EXTERNAL
    tensor.dims.extend(shape)
    return tensor


def _hollow(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Put hollow modules in the place of linears, head and embedding; their weights' names and shapes in the graph.

    Every other parameter becomes a real one. No two hold equal numbers, which the exporter would share.
    """
    number = itertools.count(1)
    yield from _hollowed(module, "", number)
    for part in module.modules():
        for names in (part._parameters, part._buffers):
            for name, tensor in names.items():
                if tensor is not None and tensor.is_meta:
                    real = torch.full(tensor.shape, float(next(number)))
                    names[name] = nn.Parameter(real, requires_grad=False) if names is part._parameters else real  # type: ignore[assignment]


def _hollowed(parent: nn.Module, prefix: str, number: Iterator[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, child in list(parent.named_children()):
        kind = next((hollow for full, hollow in _HOLLOW.items() if isinstance(child, full)), None)
        made = child if kind is None else kind(child, next(number))
        if kind is not None:
            setattr(parent, name, made)
            yield f"{prefix}{name}.weight", made.shape  # type: ignore[misc]  # of a hollow module
        yield from _hollowed(made, f"{prefix}{name}.", number)


class _Product(torch.autograd.Function):
    """x [..., in] times a weight that is not there -> zeros [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
        return x.new_zeros((*x.shape[:-1], shape[1]))

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, shape: tuple[int, int]) -> Any:
        weight.setType(weight.type().with_sizes(list(shape)))
        return g.op("MatMul", x, weight)


class _HeadProduct(torch.autograd.Function):
    """As fusar_edge.export.layers.Head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
        return x.new_zeros((*x.shape[:-1], shape[0]))

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, shape: tuple[int, int]) -> Any:
        weight.setType(weight.type().with_sizes(list(shape)))
        return g.op("Gemm", x, weight, transB_i=1)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        return weight.new_zeros((*ids.shape, shape[1]))

    @staticmethod
    def symbolic(g: Any, weight: Any, ids: Any, shape: tuple[int, int]) -> Any:
        weight.setType(weight.type().with_sizes(list(shape)))
        return g.op("Gather", weight, ids)


class _Hollow(nn.Module):
    """`shape`: of the weight as it stands in the graph."""

    def __init__(self, shape: tuple[int, int], number: int) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.full((1, 1), float(number)), requires_grad=False)


class HollowLinear(_Hollow):
    def __init__(self, linear: nn.Linear, number: int) -> None:
        super().__init__((linear.in_features, linear.out_features), number)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.weight, self.shape)
        return product if self.bias is None else self.bias + product


class HollowAdapted(HollowLinear):
    """As fusar_edge.model.adapted.AdaptedLinear; the two linears of its branch become hollow in their turn."""

    def __init__(self, linear: AdaptedLinear, number: int) -> None:
        super().__init__(linear, number)
        self.adapter_a, self.adapter_b = linear.adapter_a, linear.adapter_b

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.adapter_b(self.adapter_a(x))
        return super().forward(x) + branch


class HollowHead(_Hollow):
    def __init__(self, head: Head, number: int) -> None:
        super().__init__((head.weight.shape[0], head.weight.shape[1]), number)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = _HeadProduct.apply(hidden, self.weight, self.shape)
        return logits


class HollowEmbedding(_Hollow):
    def __init__(self, embedding: nn.Embedding, number: int) -> None:
        super().__init__((embedding.num_embeddings, embedding.embedding_dim), number)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = _Rows.apply(self.weight, ids, self.shape)
        return rows


_HOLLOW: dict[type[nn.Module], Any] = {  # the first that fits
    AdaptedLinear: HollowAdapted, nn.Linear: HollowLinear, Head: HollowHead, nn.Embedding: HollowEmbedding
}  # fmt: skip

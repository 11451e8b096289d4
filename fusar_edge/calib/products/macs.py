"""What a graph costs: multiply-accumulates of each product, the share of them in INT8, and bytes on disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusar_edge.calib.outliers import SUFFIX
from fusar_edge.calib.products.lint import Finding, constants, products
from fusar_edge.errors import InputError
from fusar_edge.runtime.bundle import BundleSettings

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LARGEST_SHAPE = 64
"""Elements of a constant that may be a shape; a larger one is a weight, of which the shape alone matters."""
FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


# Multiply-accumulates -----------------------------------------------------------------------------------------------


def node_macs(model: ModelProto, dims: Mapping[str, int]) -> dict[str, int]:
    """Multiply-accumulates of each MatMul, Gemm and Conv where the graph's symbolic dimensions have the sizes `dims`.

    Shapes are those that ONNX Runtime folds to constants once the inputs have sizes. (onnx.shape_inference stops at
    TLM's computed slices and, with cached tokens, at the decoder's reshapes; running the graph would multiply: minutes
    at 7B.) Nothing is multiplied and no weight is read: `model` may come without its external data. InputError where
    `dims` are not the graph's, or leave a shape open.
    """
    shapes = _shapes(model, dims)
    macs = {}
    for node in products(model):
        left, right, result = (shapes[name] for name in (*node.input[:2], node.output[0]))
        turned = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
        depth = math.prod(right[1:]) if node.op_type == "Conv" else left[0 if turned else -1]
        macs[node.name] = math.prod(result) * depth
    return macs


def _shapes(model: ModelProto, dims: Mapping[str, int]) -> dict[str, list[int]]:
    """Shape of each input and output of a product."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    names = list(dict.fromkeys(name for node in products(model) for name in (*node.input[:2], node.output[0])))
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        graph = _shapes_only(model, dims, names).SerializeToString()
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    found = {t.name: numpy_helper.to_array(t).tolist() for t in folded.graph.initializer if t.name.startswith("shape ")}
    unknown = [name for name in names if f"shape {name}" not in found]
    if unknown:
        raise InputError(f"{dict(dims)} leave the shape of {unknown[0]} open: it depends on values of the inputs")
    return {name: found[f"shape {name}"] for name in names}


def _shapes_only(model: ModelProto, dims: Mapping[str, int], names: Iterable[str]) -> ModelProto:
    """A graph whose outputs are the shapes of the tensors `names`; its weights are inputs."""
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[int] | None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    sources = [(v.name, v.type.tensor_type.elem_type, list(v.type.tensor_type.shape.dim)) for v in model.graph.input]
    symbols = {d.dim_param for _, _, shape in sources for d in shape if d.dim_param}
    if symbols != set(dims):
        raise InputError(f"sizes are given for {sorted(dims)}; the graph has {sorted(symbols)}: give a size for each")
    inputs = [value(n, kind, [dims.get(d.dim_param, d.dim_value) for d in shape]) for n, kind, shape in sources]
    weights = [t for t in model.graph.initializer if math.prod(t.dims) > LARGEST_SHAPE]
    small = [t for t in model.graph.initializer if math.prod(t.dims) <= LARGEST_SHAPE]
    inputs += [value(t.name, t.data_type, list(t.dims)) for t in weights]
    shapes = [helper.make_node("Shape", [name], [f"shape {name}"]) for name in names]
    outputs = [value(f"shape {name}", TensorProto.INT64, None) for name in names]
    graph = helper.make_graph([*model.graph.node, *shapes], "shapes", inputs, outputs, small)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def counted(findings: Iterable[Finding], macs: Mapping[str, int]) -> list[Finding]:
    """The findings with their multiply-accumulates; of a bias they stay 0."""
    return [replace(f, macs=f.macs if f.kind == "bias" else macs[f.name]) for f in findings]


def int8_share(findings: Iterable[Finding]) -> dict[str, float]:
    """Share of multiply-accumulates in INT8: of products with weights, and of `all`; NaN where there are none.

    ValueError where a finding was not counted.
    """
    listed = list(findings)
    return {
        "weights": _share([f for f in listed if f.kind == "weights"]),
        "all": _share(listed),
    }


def _share(findings: list[Finding]) -> float:
    total = sum(_macs(f) for f in findings)
    return sum(_macs(f) for f in findings if f.int8) / total if total else math.nan


def _macs(finding: Finding) -> int:
    if finding.macs is None:
        raise ValueError(f"{finding.name} has no multiply-accumulates: give the findings to `counted` first")
    return finding.macs


# A tile -------------------------------------------------------------------------------------------------------------


def vision_dims(settings: BundleSettings, anchors: int | None = None) -> dict[str, int]:
    """One image; with a whole grid of anchors unless told otherwise."""
    return {"batch": 1, "anchors": settings.anchor_nodes**2 if anchors is None else anchors}


def decoder_dims(settings: BundleSettings, new: int, past: int) -> dict[str, int]:
    """`new` tokens after `past` ones: prefill, or a decode step where `new` is 1."""
    return {"batch": 1, "tokens": new, "visual": settings.cells**2, "cached": past}


def tile_macs(
    settings: BundleSettings, vision: ModelProto, decoder: ModelProto, prompt_tokens: int, answer_tokens: int
) -> dict[str, int]:
    """Multiply-accumulates of each product for one tile: vision, prefill of the prompt, and the steps of an answer.

    `prompt_tokens`: image, template and question, in one run. `answer_tokens`: with the one that ends the answer; the
    first comes from prefill, each other from a step of its own.
    """
    macs = node_macs(vision, vision_dims(settings)) | node_macs(decoder, decoder_dims(settings, prompt_tokens, 0))
    steps = answer_tokens - 1
    if steps < 1:
        return macs
    pasts = (prompt_tokens, prompt_tokens + steps - 1)
    first, last = (node_macs(decoder, decoder_dims(settings, 1, past)) for past in pasts)
    # A step's products are affine in the cached tokens, so the steps add up as an arithmetic series does.
    return {name: count + steps * (first.get(name, 0) + last.get(name, 0)) // 2 for name, count in macs.items()}


def tile_share(
    settings: BundleSettings,
    vision: ModelProto,
    decoder: ModelProto,
    findings: Iterable[Finding],
    prompt_tokens: int,
    answer_tokens: int,
) -> dict[str, float]:
    """`int8_share` of a whole tile; `findings` of both graphs, sizes as in `tile_macs`."""
    return int8_share(counted(findings, tile_macs(settings, vision, decoder, prompt_tokens, answer_tokens)))


# Bytes on disk ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredBytes:
    """An INT8 graph on disk, with its external data."""

    parameters: int
    """Quantised ones: codes of INT8 constants in front of DequantizeLinear."""
    codes: int
    """Bytes of them."""
    scales: int
    """Bytes of scales and zero points, of weights and activations."""
    outliers: int
    """Bytes of the float rows that were taken out of quantised weights."""
    floating: dict[str, int]
    """Tensor -> bytes of every other floating constant: kept weights, biases, norms, embeddings, tables."""
    rest: int
    """Bytes of nodes, names and integer constants."""

    @property
    def total(self) -> int:
        return self.codes + self.scales + self.outliers + sum(self.floating.values()) + self.rest

    @property
    def bytes_per_quantised_parameter(self) -> float:
        """All but the floating tensors; NaN for a graph without quantised weights."""
        return (self.total - sum(self.floating.values())) / self.parameters if self.parameters else math.nan


def stored_bytes(path: Path) -> StoredBytes:
    """What takes the room in an ONNX file and the files of external data beside it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    tensors = dict(constants(model))
    sizes = {name: _bytes(tensor) for name, tensor in tensors.items()}
    scaled = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {name for node in scaled for name in node.input[1:]} & tensors.keys()
    codes = {node.input[0] for node in scaled} & {name for name, tensor in tensors.items() if _type(tensor) == "INT8"}
    floats = {n: sizes[n] for n, tensor in tensors.items() if _type(tensor) in FLOATS and n not in scales}
    rows = {name: floats.pop(name) for name in list(floats) if name.endswith(f"{SUFFIX}.weight")}
    in_codes, in_scales, in_rows = (sum(sizes[name] for name in names) for names in (codes, scales, rows))
    outside = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    files = [path, *(path.parent / name for name in outside)]
    rest = sum(file.stat().st_size for file in files) - sum(floats.values()) - in_codes - in_scales - in_rows
    parameters = sum(math.prod(tensors[name].dims) for name in codes)
    return StoredBytes(parameters, in_codes, in_scales, in_rows, floats, rest)


def _type(tensor: TensorProto) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(tensor.data_type))


def _bytes(tensor: TensorProto) -> int:
    from onnx import helper

    return math.prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)

"""Writes one graph: Optimum's exporter, names by layer, checks."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from optimum.exporters.onnx import export
from optimum.exporters.onnx.base import OnnxConfig
from torch import nn

from fusar_edge.calib.adapter_file import refer_to
from fusar_edge.errors import GateError
from fusar_edge.export.adapters import told_apart
from fusar_edge.export.naming import name_by_layer
from fusar_edge.runtime.adapters import read_record

FORBIDDEN = {
    "Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "If", "Loop", "Scan", "MatMulInteger",
    "DynamicQuantizeLinear",
}  # fmt: skip
"""Operators that one of TensorRT 8.6 to 11 does not build (DESIGN section 3)."""

TABLE = 1024
"""Bytes from which a Constant is a table and no shape or index."""
LARGE = 1 << 30
"""Bytes of weights from which they go to a file of their own, NAME.onnx.data: one protobuf ends at 2 GiB."""


def write_graph(
    module: nn.Module,
    config: OnnxConfig,
    path: Path,
    opset: int = 17,
    large: int = LARGE,
    adapter: str | None = None,
) -> None:
    """Export `module` to `path`. GateError where the graph holds what DESIGN section 3 rules out.

    `adapter`: of a decoder with branches, the name of the one beside `path` that it is to refer to.
    """
    with told_apart(module):
        model = traced(module, config, path.parent, opset)
    if adapter is not None:
        refer_to(model, adapter, read_record(path.parent, adapter).tensors)
    if sum(w.ByteSize() for w in model.graph.initializer) > large:
        data = f"{path.name}.data"
        onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=1024)
    else:
        onnx.save_model(model, path)
    onnx.checker.check_model(path, full_check=True)
    check_operators(model, path.name)


def traced(module: nn.Module, config: OnnxConfig, folder: Path, opset: int = 17) -> onnx.ModelProto:
    """The graph of `module` with its weights, every node named by its layer. `folder`: for the exporter's own file."""
    with tempfile.TemporaryDirectory(prefix=".trace-", dir=folder) as scratch, _known_warnings():
        path = Path(scratch) / "graph.onnx"
        export(module, config, path, opset=opset, disable_dynamic_axes_fix=True)
        model = onnx.load(path)
    fix_shapes(model, module, config)
    drop_idle_casts(model)
    name_by_layer(model)
    share_tables(model)
    return model


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """GateError that names the operators and domains which some TensorRT does not build."""
    found = {n.op_type for n in model.graph.node if n.op_type in FORBIDDEN}
    found |= {f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")}
    if found:
        raise GateError(f"{name} holds {', '.join(sorted(found))}: not every TensorRT from 8.6 to 11 builds them")


def fix_shapes(model: onnx.ModelProto, module: nn.Module, config: OnnxConfig) -> None:
    """Write the sizes of the outputs' fixed axes; the tracer invents a name for what follows a Reshape."""
    with torch.no_grad():
        outputs = module(**config.generate_dummy_inputs())
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    for value, tensor in zip(model.graph.output, outputs, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, size in enumerate(tensor.shape):
            if axis not in config.outputs[value.name]:
                dims[axis].dim_value = size


def drop_idle_casts(model: onnx.ModelProto) -> None:
    """Remove the Casts to the type that a value has: traces of `.float()` on float32."""
    weights = [onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer]
    graph = onnx.helper.make_graph(model.graph.node, "types", [*model.graph.input, *weights], model.graph.output)
    bare = onnx.helper.make_model(graph, opset_imports=model.opset_import)  # inference takes no model beyond 2 GiB
    graph = onnx.shape_inference.infer_shapes(bare).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    idle = [n for n in model.graph.node if n.op_type == "Cast" and types.get(n.input[0]) == n.attribute[0].i]
    public = {v.name for v in model.graph.output}
    for cast in idle:
        source, result = cast.input[0], cast.output[0]
        model.graph.node.remove(cast)
        if result in public:  # the producer takes the public name
            source, result = result, source
        for node in model.graph.node:
            node.input[:] = [source if name == result else name for name in node.input]
            node.output[:] = [source if name == result else name for name in node.output]


def share_tables(model: onnx.ModelProto) -> None:
    """Keep one of several equal Constants: each block of the tower comes with rotary tables of its own.

    54 MB at 7B and 504 px; 1.2 MB of fusar-tiny, a fifth of its INT8 vision graph.
    """
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for node in [n for n in model.graph.node if n.op_type == "Constant"]:
        value = node.attribute[0].SerializeToString()
        if len(value) < TABLE:
            continue
        kept = first.setdefault(value, node.output[0])
        if kept != node.output[0]:
            same[node.output[0]] = kept
            model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what Optimum's call of torch.onnx.export always says, and nothing else."""
    with warnings.catch_warnings():
        legacy = "You are using the legacy TorchScript-based ONNX export"
        warnings.filterwarnings("ignore", message=legacy, category=DeprecationWarning)
        removed = "The feature will be removed. Please remove usage of this function"
        warnings.filterwarnings("ignore", message=removed, category=DeprecationWarning, module="torch.onnx")
        yield

"""A decoder's branch is in a file of its own, adapters/NAME.data, also after the graph was read and written again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusar_edge.runtime.adapters import Placed, data_name, read_record

if TYPE_CHECKING:
    from onnx import ModelProto

KEY = "fusar_edge.adapter"
"""Of the graph's metadata: name of the adapter that it refers to. ONNX forgets where constants were when it reads."""


def refer_to(model: ModelProto, name: str, tensors: Mapping[str, Placed]) -> None:
    """Have the constants of the branch lie in adapters/NAME.data, in place; what they held is let go."""
    from onnx import TensorProto

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for key, placed in tensors.items():
        tensor = held[key]
        assert tuple(tensor.dims) == placed.shape, f"{key} is {list(tensor.dims)}, the layout says {placed.shape}"
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.data_location = key, TensorProto.FLOAT, TensorProto.EXTERNAL
        tensor.dims.extend(placed.shape)
        length = placed.end - placed.offset
        for field, value in (("location", data_name(name)), ("offset", placed.offset), ("length", length)):
            tensor.external_data.add(key=field, value=str(value))
    mark(model, name)


def mark(model: ModelProto, name: str) -> None:
    """Have the graph say by name which adapter it refers to."""
    if not any(entry.key == KEY for entry in model.metadata_props):
        model.metadata_props.add(key=KEY, value=name)


def refer_to_adapter(model: ModelProto, folder: Path) -> None:
    """As it was where the graph was read, if `folder` has the file; else its constants stay in the graph."""
    for name in [entry.value for entry in model.metadata_props if entry.key == KEY]:
        if (folder / data_name(name)).is_file():
            refer_to(model, name, read_record(folder, name).tensors)

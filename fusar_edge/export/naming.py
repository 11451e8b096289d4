"""Names in the graphs: those of the layers in PyTorch, so that a recipe can say `vision.blocks.3.attn.qkv`.

    a node with a weight    its layer                    vision.blocks.3.attn.qkv
    any other node          layer/operator               vision.blocks.3.attn/Softmax
    a weight, a bias        layer.weight, layer.bias     vision.blocks.3.attn.qkv.weight

The weight of a MatMul is stored transposed, [in, out].
"""

from __future__ import annotations

import onnx

_WEIGHT_INPUT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}


def _layer_of(path: str) -> tuple[str, str]:
    """`/blocks.3/mlp/mlp.0/MatMul_1` -> (`blocks.3.mlp.0`, `MatMul_1`): a list's own name is not repeated."""
    *scopes, operator = path.strip("/").split("/")
    kept: list[str] = []
    for name in scopes:
        if kept and name.startswith(kept[-1] + "."):
            kept[-1] = name
        else:
            kept.append(name)
    return ".".join(kept), operator


def name_by_layer(model: onnx.ModelProto) -> None:
    """Rename nodes, weights and values of an export in place. Inputs and outputs of the graph keep their names."""
    graph = model.graph
    shapes = {w.name: tuple(w.dims) for w in graph.initializer}
    public = {v.name for v in [*graph.input, *graph.output]}
    renamed: dict[str, str] = {}
    used: set[str] = set()
    for node in graph.node:
        layer, operator = _layer_of(node.name)
        place = _WEIGHT_INPUT.get(node.op_type)
        weight = node.input[place] if place is not None else ""
        if layer and len(shapes.get(weight, ())) >= 2 and layer not in used:
            renamed.setdefault(weight, f"{layer}.weight")
            node.name = layer
        else:
            node.name = f"{layer}/{operator}" if layer else operator
        if node.op_type in ("Add", "Conv", "Gemm"):
            for name in node.input:
                if len(shapes.get(name, ())) == 1:
                    renamed.setdefault(name, f"{layer}.bias")
        assert node.name not in used, f"two nodes named {node.name}"
        used.add(node.name)
        for index, name in enumerate(node.output):
            if name and name not in public:
                renamed[name] = f"{node.name}_output_{index}" if index else f"{node.name}_output"
    for weight in graph.initializer:
        weight.name = renamed.get(weight.name, weight.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del graph.value_info[:]

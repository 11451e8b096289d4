"""Graphs that were traced without weights are those of the whole model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from fusar_edge.export.lean.skeleton import skeletons
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.runtime.bundle import DECODER, VISION

TIED = {"decoder.lm_head.weight": "decoder.embed_tokens.weight"}
"""The whole graph of a tied model holds them once."""


def by_value(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes but for Constants, which are named by their value where they are read."""
    values = {n.output[0]: str(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"}
    nodes = [n for n in model.graph.node if n.op_type != "Constant"]
    for node in nodes:
        node.input[:] = [values.get(TIED.get(i, i), TIED.get(i, i)) for i in node.input]
    return nodes


@pytest.mark.parametrize("name", [VISION, DECODER])
def test_a_skeleton_has_the_nodes_and_the_shapes_of_the_whole_graph(
    model: FusarForConditionalGeneration, graphs: Path, tmp_path: Path, name: str
) -> None:
    whole, found = onnx.load(graphs / name), skeletons(model.config, tmp_path)[name]
    for a, b in zip(by_value(found), by_value(whole), strict=True):
        assert a == b
    assert found.graph.input == whole.graph.input
    assert found.graph.output == whole.graph.output
    declared = {TIED.get(t.name, t.name): list(t.dims) for t in found.graph.initializer}
    assert declared == {t.name: list(t.dims) for t in whole.graph.initializer}
    assert not any(t.raw_data or t.float_data for t in found.graph.initializer)
    assert list(tmp_path.iterdir()) == []

"""A graph that is run part by part says what it says as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fusar_edge.export.lean.parts import Runner, model_of, parts_of, types_of
from fusar_edge.export.parity import run_from_file, sample
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.runtime.bundle import DECODER, VISION


@pytest.mark.parametrize("name", [VISION, DECODER])
def test_the_parts_one_after_the_other_are_the_graph(
    model: FusarForConditionalGeneration, graphs: Path, name: str
) -> None:
    whole = onnx.load(graphs / name)
    values: dict[str, Any] = dict(inputs(model, name))
    wanted = run_from_file(graphs / name)(values)
    parts, types = parts_of(whole), types_of(whole)
    for part in parts.values():
        runner = Runner(model_of(part, part.nodes, whole.graph.initializer, types, whole), graphs)
        values |= runner(values)
    for output, value in wanted.items():
        np.testing.assert_allclose(values[output], value, rtol=0, atol=1e-5)
    layers = [p for p in parts if p.startswith(("vision.blocks.", "decoder.layers."))]
    assert len(layers) == (3 if name == VISION else 2)


def inputs(model: FusarForConditionalGeneration, name: str) -> dict[str, Any]:
    given = sample(model, 1)
    if name == VISION:
        return given.vision
    text = model.config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    row = (text.num_hidden_layers, 2, 1, text.num_key_value_heads, head_dim)
    rng = np.random.default_rng(0)
    return {
        "input_ids": given.input_ids,
        "visual_tokens": rng.normal(size=(1, model.cells**2, text.hidden_size)).astype(np.float32),
        "visual_index": given.visual_index,
        "position_ids": given.position_ids,
        "past": rng.normal(size=(3, *row)).astype(np.float32),
    }

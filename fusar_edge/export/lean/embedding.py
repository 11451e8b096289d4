"""The embedding: a table that is written in blocks of rows and never whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto

from fusar_edge.calib.qdq import gather_in_half
from fusar_edge.export.lean.graphs import Graph
from fusar_edge.export.lean.modules import LANGUAGE, embedding_blocks, embedding_rows
from fusar_edge.export.lean.parts import Array, Part
from fusar_edge.export.lean.questions import Asked
from fusar_edge.model.weights import Weights

EMBEDDING_TABLE = "decoder.embed_tokens.weight"


def write_table(graph: Graph, weights: Weights, tick: Callable[[float], None]) -> None:
    """Into the graph's data file, in FP16 where the graph has it so."""
    shape = weights.shape(f"{LANGUAGE}embed_tokens.weight")
    kind, dtype = (TensorProto.FLOAT16, np.float16) if graph.half else (TensorProto.FLOAT, np.float32)

    def blocks() -> Iterator[Array]:
        done = 0
        for block in embedding_blocks(weights):
            done += len(block)
            tick(done / shape[0])
            yield block.numpy().astype(dtype)

    graph.data.put_blocks(EMBEDDING_TABLE, shape, kind, blocks())
    graph.data.flush()


def embedded(weights: Weights, asked: Asked, visual: Array) -> Array:
    """[1, N, C] in float32: the text's rows, and visual tokens [1, T, C] in their places."""
    text = embedding_rows(weights, torch.from_numpy(asked.input_ids)).numpy()
    seen = visual[0][np.clip(asked.visual_index, 0, None)]
    result: Array = np.where(asked.visual_index[..., None] < 0, text, seen)
    return result


def in_half(part: Part, tables: list[str]) -> list[NodeProto]:
    """The part's nodes for tables in FP16."""
    model = onnx.helper.make_model(onnx.helper.make_graph(part.nodes, part.name, [], []))
    gather_in_half(model, tables)
    return list(model.graph.node)

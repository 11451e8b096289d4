"""Stand-ins: tiny ONNX graphs that keep the contract of DESIGN section 3, and a backend that says what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fusar_edge.data import chat
from fusar_edge.runtime.backend import Step
from fusar_edge.runtime.bundle import Bundle, BundleSettings, open_bundle, seal_bundle
from fusar_edge.runtime.cache import KvCache

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
VOCABULARY = 256 + len(SPECIAL)
END, IMAGE = 256 + 2, 256 + 5
LAYERS, HEADS, DIM, CHANNELS, CELLS, SIZE = 2, 1, 3, 8, 2, 28
ROW = LAYERS * 2 * HEADS * DIM


def fake_settings(**changes: Any) -> BundleSettings:
    values = {
        "name": "fake",
        "image_size": SIZE,
        "cells": CELLS,
        "channels": CHANNELS,
        "layers": LAYERS,
        "kv_heads": HEADS,
        "head_dim": DIM,
        "vocab_size": VOCABULARY,
        "eos_ids": (END,),
        "image_token_id": IMAGE,
        "anchor_nodes": 3,
        "context_tokens": 1024,
        "max_new_tokens": {"caption": 40, "count": 4, "grid": 6, "classify": 16, "detect": 200},
        "tile_px": 64,
        "overlap_px": 0,
    }
    return BundleSettings(**{**values, **changes})


def write_tokenizer(path: Path) -> None:
    """Every byte is a token; no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(path))


class Weights:
    """Numbers of the fake model, and the model itself in NumPy: the oracle."""

    def __init__(self, seed: int = 0) -> None:
        r = np.random.default_rng(seed)

        def normal(*shape: int, scale: float) -> np.ndarray:
            return r.normal(0, scale, shape).astype(np.float32)

        self.pixel = normal(1, CHANNELS, scale=2.0)
        self.anchor = normal(64, CHANNELS, scale=1.0)
        self.place = normal(2, CHANNELS, scale=1.0)
        self.embedding = normal(VOCABULARY, CHANNELS, scale=1.0)
        self.row = normal(CHANNELS, ROW, scale=0.5)
        self.position = normal(3, ROW, scale=0.05)
        self.last = normal(CHANNELS, ROW, scale=0.5)
        self.out = normal(ROW, VOCABULARY, scale=3.0)

    def vision(self, pixels: np.ndarray, anchors: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        pooled = pixels.reshape(-1, CELLS, 14, CELLS, 14).mean((2, 4)).reshape(-1, CELLS**2, 1)
        shift = (anchors @ self.anchor + positions @ self.place) * mask[..., None]
        return pooled * self.pixel + shift.sum(1, keepdims=True)

    def logits(self, ids: np.ndarray, visual: np.ndarray, index: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Of the last of N tokens, from nothing: ids [N], visual [T, C], index [N], positions [3, N] -> [V]."""
        x = np.where(index[:, None] < 0, self.embedding[ids], visual[np.maximum(index, 0)])
        rows = np.tanh(x @ self.row + positions.T @ self.position)
        return np.sin(rows.sum(0) + x[-1] @ self.last) @ self.out  # a sine of many rows does not saturate


def _graph(name: str, nodes: list, inputs: dict, outputs: dict, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    def values(shapes: dict) -> list:
        return [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in shapes.items()]

    graph = helper.make_graph(
        nodes, name, values(inputs), values(outputs), [numpy_helper.from_array(v, n) for n, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def vision_graph(w: Weights) -> onnx.ModelProto:
    n, f = helper.make_node, TensorProto.FLOAT
    nodes = [
        n("AveragePool", ["pixels"], ["pooled"], kernel_shape=[14, 14], strides=[14, 14]),
        n("Reshape", ["pooled", "as_tokens"], ["means"]),
        n("MatMul", ["means", "pixel"], ["plain"]),
        n("MatMul", ["anchors", "anchor"], ["a"]),
        n("MatMul", ["anchor_positions", "place"], ["p"]),
        n("Add", ["a", "p"], ["ap"]),
        n("Unsqueeze", ["anchor_mask", "last_axis"], ["m"]),
        n("Mul", ["ap", "m"], ["apm"]),
        n("ReduceSum", ["apm", "one_axis"], ["shift"], keepdims=1),
        n("Add", ["plain", "shift"], ["visual_tokens"]),
    ]
    inputs = {
        "pixels": (f, ["B", 1, SIZE, SIZE]),
        "anchors": (f, ["B", "A", 64]),
        "anchor_positions": (f, ["B", "A", 2]),
        "anchor_mask": (f, ["B", "A"]),
    }
    constants = {
        "as_tokens": np.array([-1, CELLS**2, 1]),
        "last_axis": np.array([2]),
        "one_axis": np.array([1]),
        "pixel": w.pixel,
        "anchor": w.anchor,
        "place": w.place,
    }
    return _graph("vision", nodes, inputs, {"visual_tokens": (f, ["B", CELLS**2, CHANNELS])}, constants)


def decoder_graph(w: Weights) -> onnx.ModelProto:
    """Rows of the cache are tanh of token and position; the answer is read from the sine of their sum."""
    n, f, i = helper.make_node, TensorProto.FLOAT, TensorProto.INT32
    nodes = [
        n("Gather", ["embedding", "input_ids"], ["text"]),
        n("Cast", ["visual_index"], ["index64"], to=TensorProto.INT64),
        n("Max", ["index64", "zero"], ["index"]),
        n("Unsqueeze", ["index", "axis_2"], ["index_c"]),
        n("Expand", ["index_c", "channels"], ["index_e"]),
        n("GatherElements", ["visual_tokens", "index_e"], ["seen"], axis=1),
        n("Less", ["visual_index", "zero32"], ["is_text"]),
        n("Unsqueeze", ["is_text", "axis_2"], ["is_text_c"]),
        n("Where", ["is_text_c", "text", "seen"], ["x"]),
        n("Cast", ["position_ids"], ["pos"], to=f),
        n("Transpose", ["pos"], ["pos_t"], perm=[1, 2, 0]),
        n("MatMul", ["pos_t", "position"], ["pos_row"]),
        n("MatMul", ["x", "row"], ["x_row"]),
        n("Add", ["x_row", "pos_row"], ["rows_raw"]),
        n("Tanh", ["rows_raw"], ["rows"]),
        n("Reshape", ["rows", "as_rows"], ["rows_6"]),
        n("Transpose", ["rows_6"], ["new"], perm=[1, 2, 3, 0, 4, 5]),
        n("Concat", ["past", "new"], ["all"], axis=0),
        n("ReduceSum", ["all", "axis_0"], ["sum"], keepdims=0),
        n("Transpose", ["sum"], ["sum_b"], perm=[2, 0, 1, 3, 4]),
        n("Reshape", ["sum_b", "as_sum"], ["sum_flat"]),
        n("Gather", ["x", "minus_one"], ["x_last"], axis=1),
        n("MatMul", ["x_last", "last"], ["x_mixed"]),
        n("Add", ["sum_flat", "x_mixed"], ["mixed"]),
        n("Sin", ["mixed"], ["mixed_t"]),
        n("MatMul", ["mixed_t", "out"], ["logits"]),
        n("ArgMax", ["logits"], ["next64"], axis=1, keepdims=0),
        n("Cast", ["next64"], ["next_ids"], to=i),
    ]
    row = ["B", HEADS, DIM]
    inputs = {
        "input_ids": (i, ["B", "N"]),
        "visual_tokens": (f, ["B", CELLS**2, CHANNELS]),
        "visual_index": (i, ["B", "N"]),
        "position_ids": (i, [3, "B", "N"]),
        "past": (f, ["P", LAYERS, 2, *row]),
    }
    outputs = {
        "logits": (f, ["B", VOCABULARY]),
        "next_ids": (i, ["B"]),
        "new": (f, ["N", LAYERS, 2, *row]),
    }
    constants = {
        "zero": np.array(0),
        "zero32": np.array(0, np.int32),
        "axis_2": np.array([2]),
        "axis_0": np.array([0]),
        "channels": np.array([1, 1, CHANNELS]),
        "as_rows": np.array([0, 0, LAYERS, 2, HEADS, DIM]),
        "as_sum": np.array([0, ROW]),
        "minus_one": np.array(-1),
        "embedding": w.embedding,
        "row": w.row,
        "position": w.position,
        "last": w.last,
        "out": w.out,
    }
    return _graph("decoder", nodes, inputs, outputs, constants)


def write_fake_bundle(folder: Path, weights: Weights | None = None, **changes: Any) -> Bundle:
    """A sealed bundle of fake graphs."""
    weights = weights or Weights()
    folder.mkdir(parents=True)
    onnx.save(vision_graph(weights), folder / "vision.onnx")
    onnx.save(decoder_graph(weights), folder / "decoder.onnx")
    write_tokenizer(folder / "tokenizer.json")
    seal_bundle(folder, fake_settings(**changes), recipe="fake", figures={"note": "fake"})
    return open_bundle(folder)


class ScriptedBackend:
    """Says `answer(question, pixels)` token by token, with certainty; counts what it was asked to run."""

    def __init__(self, bundle: Bundle, answer: Callable[[str, np.ndarray], str]) -> None:
        self.settings, self.answer = bundle.settings, answer
        self.visions: list[dict[str, np.ndarray]] = []
        self.prefixes = 0
        self._script: list[int] = []
        self._tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))

    def vision(self, pixels: np.ndarray, anchors: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.visions.append({"pixels": pixels, "anchors": anchors, "positions": positions, "mask": mask})
        return np.zeros((1, CELLS**2, CHANNELS), np.float32)

    def new_cache(self, capacity: int) -> KvCache:
        return KvCache(capacity, (LAYERS, 2, 1, HEADS, DIM))

    def step(self, cache: Any, input_ids: np.ndarray, visual: Any, visual_index: np.ndarray, position_ids: Any) -> Step:
        cache.advance(input_ids.shape[1])
        if (visual_index >= 0).any():
            self.prefixes += 1
        elif input_ids.shape[1] > 1:
            text = self._tokenizer.decode(input_ids[0].tolist(), skip_special_tokens=False)
            question = text.removesuffix(chat.AFTER_QUESTION)
            said = self.answer(question, self.visions[-1]["pixels"][0, 0])
            self._script = [*self._tokenizer.encode(said).ids, END]
        token = self._script.pop(0) if self._script else END
        logits = np.full((1, VOCABULARY), -30.0, np.float32)
        logits[0, token] = 30.0
        return Step(logits, np.array([token], np.int32))

"""The two graphs in Optimum's terms: inputs, outputs and their dynamic axes, and dummies to trace with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import DummyInputGenerator, NormalizedConfig
from torch import Tensor

Axes = dict[str, dict[int, str]]

# Sizes to trace with: all different, and none of them 1, which the tracer would take for a constant.
BATCH, ANCHORS, TOKENS, PAST, VISUAL = 2, 5, 7, 3, 6


class FusarNormalizedConfig(NormalizedConfig):
    """A FUSAR-GPT config as numbers of the graphs."""

    VOCAB_SIZE = "text_config.vocab_size"
    CHANNELS = "text_config.hidden_size"
    LAYERS = "text_config.num_hidden_layers"
    HEADS = "text_config.num_attention_heads"
    KV_HEADS = "text_config.num_key_value_heads"

    @property
    def image_size(self) -> int:
        return int(self.config.fusar["image_size"])

    @property
    def anchor_bands(self) -> int:
        return int(self.config.fusar["anchor_bands"])

    @property
    def head_dim(self) -> int:
        return int(self.channels // self.heads)


class _FusarDummies(DummyInputGenerator):
    """Random inputs by name."""

    def __init__(self, task: str, normalized_config: FusarNormalizedConfig, **_: Any) -> None:
        self.config = normalized_config

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "", float_dtype: str = ""
    ) -> Tensor | np.ndarray:
        value = self.tensor(input_name)
        return value.numpy() if framework == "np" else value

    def tensor(self, name: str) -> Tensor:
        raise NotImplementedError


class VisionDummies(_FusarDummies):
    SUPPORTED_INPUT_NAMES = ("pixels", "anchors", "anchor_positions", "anchor_mask")

    def tensor(self, name: str) -> Tensor:
        size, bands = self.config.image_size, self.config.anchor_bands
        shapes = {"pixels": (1, size, size), "anchors": (ANCHORS, bands), "anchor_positions": (ANCHORS, 2)}
        return torch.rand(BATCH, *shapes.get(name, (ANCHORS,)))


class DecoderDummies(_FusarDummies):
    SUPPORTED_INPUT_NAMES = ("input_ids", "visual_tokens", "visual_index", "position_ids", "past")

    def tensor(self, name: str) -> Tensor:
        config = self.config
        if name == "visual_tokens":
            return torch.randn(BATCH, VISUAL, config.channels)
        if name == "past":
            return torch.randn(PAST, config.layers, 2, BATCH, config.kv_heads, config.head_dim)
        bounds = {"input_ids": (0, config.vocab_size), "visual_index": (-1, VISUAL), "position_ids": (0, 64)}
        shape = (3, BATCH, TOKENS) if name == "position_ids" else (BATCH, TOKENS)
        return torch.randint(*bounds[name], shape, dtype=torch.int32)


class FusarVisionOnnxConfig(OnnxConfig):
    """vision.onnx."""

    NORMALIZED_CONFIG_CLASS = FusarNormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (VisionDummies,)
    DEFAULT_ONNX_OPSET = 17

    @property
    def inputs(self) -> Axes:
        per_anchor = {0: "batch", 1: "anchors"}
        return {
            "pixels": {0: "batch"},
            "anchors": per_anchor,
            "anchor_positions": per_anchor,
            "anchor_mask": per_anchor,
        }

    @property
    def outputs(self) -> Axes:
        return {"visual_tokens": {0: "batch"}}


class FusarDecoderOnnxConfig(OnnxConfig):
    """decoder.onnx."""

    NORMALIZED_CONFIG_CLASS = FusarNormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DecoderDummies,)
    DEFAULT_ONNX_OPSET = 17

    @property
    def inputs(self) -> Axes:
        return {
            "input_ids": {0: "batch", 1: "tokens"},
            "visual_tokens": {0: "batch", 1: "visual"},
            "visual_index": {0: "batch", 1: "tokens"},
            "position_ids": {1: "batch", 2: "tokens"},
            "past": {0: "cached", 3: "batch"},
        }

    @property
    def outputs(self) -> Axes:
        return {"logits": {0: "batch"}, "next_ids": {0: "batch"}, "new": {0: "tokens", 3: "batch"}}

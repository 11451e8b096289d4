"""One layer in float32, in PyTorch, on one sample: what ranges are taken from, and what INT8 is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusar_edge.export.decoder_graph import BLOCKED, Decoder
from fusar_edge.export.lean.modules import TLM, Layer
from fusar_edge.export.lean.parts import HEAD
from fusar_edge.export.lean.questions import Asked
from fusar_edge.export.lean.unfinished import Values


def float_values(layer: Layer, asked: Asked, given: Values, text: tuple[Tensor, ...], *, plain: bool = False) -> Values:
    """What the layer makes of `given`. `text`: of a decoder layer, what `text_of` gives.

    `plain`: as calibration has it. TLM is run without anchors too, and the head at the places where `calibrate` asks.
    """
    hidden = torch.from_numpy(given["hidden"])
    if layer.name == TLM:
        for feed in asked.feeds if plain else asked.feeds[-1:]:
            result = layer.graph(hidden, *anchors_of(feed))
    elif layer.name == HEAD:
        assert layer.float_head is not None
        norm: Any = layer.graph["norm"]  # type: ignore[index]
        places = asked.ends if plain else asked.answer
        return {"logits": layer.float_head(norm(hidden[0, places])).numpy()}
    else:
        result = layer.graph(hidden, *text)
    hidden = result[0] if isinstance(result, tuple) else result  # of a decoder layer; keys and values are not needed
    return {"hidden": hidden.numpy()}


def text_of(decoder: Decoder, asked: Asked) -> tuple[Tensor, ...]:
    """Cosines, sines, mask and an empty cache: the whole text in one run."""
    count = asked.input_ids.shape[1]
    blocked = torch.triu(torch.full((count, count), BLOCKED), 1)
    past = torch.zeros(0, 1, *decoder.kv_shape)
    return (*decoder.rotation(torch.from_numpy(asked.positions)), blocked, past, past)


def anchors_of(feed: Values) -> tuple[Tensor, ...]:
    """TLM's inputs beside the tokens."""
    return tuple(torch.from_numpy(feed[name]) for name in ("anchors", "anchor_positions", "anchor_mask"))

"""Inputs and outputs of the two graphs (DESIGN section 3), whatever runs them."""

from __future__ import annotations

from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings

Shape = tuple[int | None, ...]
Tensors = dict[str, Shape]
"""Name -> shape; None is a dimension that varies."""


def graph_contract(s: BundleSettings) -> dict[str, tuple[Tensors, Tensors]]:
    """Graph -> its inputs and its outputs."""
    row: Shape = (None, s.layers, 2, None, s.kv_heads, s.head_dim)
    tokens: Shape = (None, s.cells**2, s.channels)
    return {
        VISION: (
            {
                "pixels": (None, 1, s.image_size, s.image_size),
                "anchors": (None, None, s.anchors.bands),
                "anchor_positions": (None, None, 2),
                "anchor_mask": (None, None),
            },
            {"visual_tokens": tokens},
        ),
        DECODER: (
            {
                "input_ids": (None, None),
                "visual_tokens": tokens,
                "visual_index": (None, None),
                "position_ids": (3, None, None),
                "past": row,
            },
            {"logits": (None, s.vocab_size), "next_ids": (None,), "new": row},
        ),
    }

"""Inputs and outputs of the two graphs (DESIGN section 3), whatever runs them."""

from __future__ import annotations

from fusar_edge.runtime.bundle import DECODER, VISION, BundleSettings

Shape = tuple[int | None, ...]
Tensors = dict[str, Shape]
"""Name -> shape; None is a dimension that varies."""


def graph_contract(s: BundleSettings) -> dict[str, tuple[Tensors, Tensors]]:
    """Graph -> its inputs and its outputs."""
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
        DECODER: _decoder(s, tokens) if s.fused is None else _fused(s, tokens),
    }


def _decoder(s: BundleSettings, tokens: Shape) -> tuple[Tensors, Tensors]:
    row: Shape = (None, s.layers, 2, None, s.kv_heads, s.head_dim)
    return (
        {
            "input_ids": (None, None),
            "visual_tokens": tokens,
            "visual_index": (None, None),
            "position_ids": (3, None, None),
            "past": row,
        },
        {"logits": (None, s.vocab_size), "next_ids": (None,), "new": row},
    )


def _fused(s: BundleSettings, tokens: Shape) -> tuple[Tensors, Tensors]:
    """A batch of one. Each `new_*` is bound to the memory of what it extends; the tables have a row for each token."""
    buffers = [f"{kind}.{layer}" for layer in range(s.layers) for kind in ("keys", "values")]
    buffer, table = (1, s.kv_heads, None, s.head_dim), (None, s.head_dim // 2)
    return (
        {
            "input_ids": (1, None),
            "visual_tokens": (1, *tokens[1:]),
            "visual_index": (1, None),
            "rows_in_use": (),  # the new tokens among them
            "last_row": (1,),
            "cos": table,
            "sin": table,
        }
        | dict.fromkeys(buffers, buffer),
        {"logits": (1, s.vocab_size), "next_ids": (1,)} | {f"new_{name}": buffer for name in buffers},
    )

"""mRoPE positions of Qwen2.5-VL for one image in a prompt (Qwen2-VL, arXiv 2409.12191, section 2.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mrope_positions(before: int, cells: int, after: int) -> NDArray[np.int64]:
    """Positions [3, before + cells^2 + after]: text, a square image of cells x cells visual tokens, text.

    Text advances all three axes together; the image holds the temporal axis and counts rows and columns from the
    position after the text; the text that follows goes on from the largest position used.
    """
    head = np.tile(np.arange(before), (3, 1))
    rows, columns = np.divmod(np.arange(cells * cells), cells)
    image = np.stack([np.zeros_like(rows), rows, columns]) + before
    tail = np.tile(np.arange(after), (3, 1)) + before + cells
    return np.concatenate([head, image, tail], axis=1).astype(np.int64)

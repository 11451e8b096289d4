"""Dense losses on the visual tokens, for the base stage only: they make a model from scratch see before it speaks.

For each visual token: does a target's centre lie here, how many, which box, how much of the cell targets cover, which
class. Asked twice: of the tower's tokens, with the box relative to the cell, and of the language model's hidden states
at the same places, with the box in the image and the place itself. The tower cannot know the place (its positions are
rotary, and the softmax of a relative position over like values is constant); the language model can, from the text
before the image. Both heads are dropped after the stage.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fusar_edge.data.truth import COORDINATE_SIZE, Truth, clipped

SHARES = {"count": 10.0, "cover": 3.0, "box": 10.0, "kind": 0.3, "whole": 0.1, "place": 0.3}
"""Weight of each loss. A mean over cells that are nearly all empty is small, and a class of a few images is noisy: with
equal weights the tower follows the noise (after 450 steps F1 of cells that hold a ship was 0.46; docs/log.md)."""
MAX_COUNT = 4
"""Targets in one cell; more are counted as so many."""


def dense_targets(
    truth: Truth | None, label: str | None, cells: int, labels: list[str]
) -> dict[str, NDArray[np.generic]]:
    """Targets of one image. `known` is 0 where there is no truth; `whole` is the image's class, -1 if it has none."""
    count = np.zeros(cells * cells, np.int64)
    box = np.zeros((cells * cells, 4), np.float32)
    kind = np.full(cells * cells, -1, np.int64)
    cover = np.zeros((cells, cells), np.float32)
    edges = np.arange(cells + 1) / cells
    for target in truth.targets if truth else ():
        inside = clipped(target.box)
        if inside is None:
            continue
        x1, y1, x2, y2 = (v / COORDINATE_SIZE for v in inside)
        across = np.clip(np.minimum(edges[1:], x2) - np.maximum(edges[:-1], x1), 0, None)
        down = np.clip(np.minimum(edges[1:], y2) - np.maximum(edges[:-1], y1), 0, None)
        cover += np.outer(down, across) * cells * cells
        at = min(int((y1 + y2) / 2 * cells), cells - 1) * cells + min(int((x1 + x2) / 2 * cells), cells - 1)
        count[at] += 1
        if count[at] == 1 or (x2 - x1) * (y2 - y1) > np.prod(box[at, 2:] - box[at, :2]):
            box[at] = (x1, y1, x2, y2)
            kind[at] = labels.index(target.label) if target.label in labels else -1
    return {
        "known": np.array(truth is not None),
        "count": np.minimum(count, MAX_COUNT),
        "box": box,
        "kind": kind,
        "cover": np.minimum(cover.flatten(), 1.0),
        "whole": np.array(labels.index(label) if label in labels else -1),
    }


class DenseHead(nn.Module):
    """Two layers on each visual token. `placed`: boxes in the image, and its row and column; else in the cell."""

    def __init__(self, channels: int, cells: int, labels: int, *, placed: bool) -> None:
        super().__init__()
        self.cells, self.placed = cells, placed
        self.sizes = [MAX_COUNT + 1, 4, 1, max(labels, 1), 2 * cells]
        self.layers = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, sum(self.sizes))
        )

    def forward(self, tokens: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """tokens [B, T, C] -> the losses by name."""
        count, box, cover, kind, place = self.layers(tokens).float().split(self.sizes, dim=-1)
        known = targets["known"]
        here = (targets["count"] > 0) & known[:, None]
        weight = count.new_tensor([0.3] + [1.0] * MAX_COUNT)
        losses = {
            "count": F.cross_entropy(count[known].flatten(0, 1), targets["count"][known].flatten(), weight),
            "cover": F.binary_cross_entropy_with_logits(cover[known].squeeze(-1), targets["cover"][known]),
            "box": F.smooth_l1_loss(self._in_image(box)[here], targets["box"][here], beta=0.02),
            "kind": F.cross_entropy(kind[here], targets["kind"][here], ignore_index=-1),
            "whole": F.cross_entropy(kind.mean(1), targets["whole"], ignore_index=-1),
        }
        if self.placed:
            losses["place"] = self._place(place)
        return {name: loss for name, loss in losses.items() if torch.isfinite(loss)}

    def _in_image(self, box: Tensor) -> Tensor:
        """Raw outputs [B, T, 4] -> x1, y1, x2, y2 in 0..1 of the image."""
        if self.placed:
            return box.sigmoid()
        at = torch.arange(self.cells, device=box.device)
        corner = torch.stack([at.repeat(self.cells), at.repeat_interleave(self.cells)], dim=-1)
        centre = (corner + box[..., :2].sigmoid()) / self.cells
        half = box[..., 2:].clamp(-6, 4).exp() / self.cells / 2
        return torch.cat([centre - half, centre + half], dim=-1)

    def _place(self, logits: Tensor) -> Tensor:
        rows, columns = logits.split(self.cells, dim=-1)
        at = torch.arange(self.cells, device=logits.device)
        row = at.repeat_interleave(self.cells).expand(len(logits), -1)
        column = at.repeat(self.cells).expand(len(logits), -1)
        return F.cross_entropy(rows.transpose(1, 2), row) + F.cross_entropy(columns.transpose(1, 2), column)


def weighted(losses: dict[str, Tensor]) -> Tensor | float:
    """Sum of the losses by SHARES; 0 for none."""
    return sum((SHARES[name] * loss for name, loss in losses.items()), 0.0)

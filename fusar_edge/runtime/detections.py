"""Boxes: from a tile's answer to scene pixels and the ground, and the doubles of overlapping tiles merged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.data.truth import Box
from fusar_edge.sar.tiles import TileWindow

SAME_IOU = 0.5
"""Boxes of one class with this intersection over union are one target."""
SAME_INSIDE = 0.7
"""So are boxes of two tiles where this share of the smaller lies in the larger: a target cut by a tile's edge."""
EDGE_PX = 2.0
"""A box this close to a tile's edge may be cut by it, px of the scene."""


class Located(Protocol):
    """The part of fusar_edge.sar's Geolocation and Scene that places boxes and tiles."""

    def lonlat(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...

    def footprint(self, window: TileWindow) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Detection:
    """One target in a scene."""

    box: Box
    """x1, y1, x2, y2 in pixels of the scene; corner (0, 0) is the outer corner of the first pixel."""
    label: str
    confidence: float
    """Of the answer that the box stood in."""
    tile: int
    """Index of the tile in the scene's plan."""
    cut: bool
    """The box touches an edge of its tile that lies inside the scene."""
    seen: int = 1
    """Boxes that were merged into this one, itself included."""


def scene_box(box: Box, window: TileWindow, size: float) -> Box:
    """A box in answer coordinates (a square of side `size`) -> pixels of the scene."""
    sx, sy = window.width / size, window.height / size
    return (
        window.col_off + box[0] * sx,
        window.row_off + box[1] * sy,
        window.col_off + box[2] * sx,
        window.row_off + box[3] * sy,
    )


def tile_box(box: Box, window: TileWindow, size: float) -> Box:
    """A box in pixels of the scene -> answer coordinates of a tile; it may leave the tile."""
    sx, sy = size / window.width, size / window.height
    return (
        (box[0] - window.col_off) * sx,
        (box[1] - window.row_off) * sy,
        (box[2] - window.col_off) * sx,
        (box[3] - window.row_off) * sy,
    )


def touches_inner_edge(box: Box, window: TileWindow, width: int, height: int) -> bool:
    """Whether a box (scene pixels) ends at an edge of its tile beyond which the scene goes on."""
    right, bottom = window.col_off + window.width, window.row_off + window.height
    return (
        (window.col_off > 0 and box[0] - window.col_off < EDGE_PX)
        or (window.row_off > 0 and box[1] - window.row_off < EDGE_PX)
        or (right < width and right - box[2] < EDGE_PX)
        or (bottom < height and bottom - box[3] < EDGE_PX)
    )


def merged(detections: list[Detection]) -> list[Detection]:
    """One detection per target: whole boxes win over cut ones, then the more confident, then the larger.

    Boxes of one tile are merged by IoU alone: the model may well say that one target lies within another.
    """
    ranked = sorted(detections, key=lambda d: (d.cut, -d.confidence, -_area(d.box), d.tile, d.box))
    boxes = np.array([d.box for d in ranked], np.float64).reshape(-1, 4)
    tiles = np.array([d.tile for d in ranked])
    labels = np.array([d.label for d in ranked])
    open_ = np.ones(len(ranked), bool)
    kept = []
    for i, detection in enumerate(ranked):
        if not open_[i]:
            continue
        iou, inside = _overlaps(boxes[i], boxes)
        double = (iou >= SAME_IOU) | ((inside >= SAME_INSIDE) & (tiles != detection.tile))
        same = open_ & double & (labels == detection.label)
        same[i] = True
        open_ &= ~same
        kept.append(replace(detection, seen=int(same.sum())))
    return kept


def box_ring(box: Box, scene: Located) -> list[list[float]]:
    """Closed ring [[lon, lat], ...] of the four corners."""
    x1, y1, x2, y2 = box
    lon, lat = scene.lonlat([x1, x1, x2, x2, x1], [y1, y2, y2, y1, y1])
    return [[float(a), float(b)] for a, b in zip(lon, lat, strict=True)]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlaps(
    box: npt.NDArray[np.float64], boxes: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Intersection over union, and over the smaller area, of one box [4] with boxes [n, 4]; each [n]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.clip(high - low, 0.0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    area = float(np.prod(box[2:] - box[:2]))
    tiny = np.finfo(np.float64).tiny
    return common / np.maximum(areas + area - common, tiny), common / np.maximum(np.minimum(areas, area), tiny)

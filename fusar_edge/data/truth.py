"""What is known about one image: targets and caption fields, in the 504-pixel coordinates of the official answers."""

from __future__ import annotations

import msgspec

COORDINATE_SIZE = 504
"""Side of the square that every answer's coordinates refer to, whatever the image size (REFERENCE section 1)."""

CAPTION_FIELDS = ("Terrain", "Functionality", "Distribution", "Layout", "Boundary", "Buildings", "Roads", "Water")
"""The fields of a stage-1 caption, in order (FUSAR-GEOVL)."""

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""


class Target(msgspec.Struct, frozen=True):
    """One object. Its box may leave the frame."""

    box: Box
    label: str


class Truth(msgspec.Struct, frozen=True):
    """Ground truth of one image."""

    targets: tuple[Target, ...] = ()
    label: str = "ship"
    """The class that count, grid and detect ask for; every target of an empty image would have it."""
    fields: dict[str, str] | None = None
    """Caption field -> text; None where nobody described the image."""
    sentence: str | None = None
    """One-sentence caption; None: made from the targets."""


def clipped(box: Box, size: float = COORDINATE_SIZE) -> Box | None:
    """The part of a box inside the frame; None when nothing is left."""
    x1, y1, x2, y2 = (min(max(v, 0.0), float(size)) for v in box)
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def grid_cell(box: Box, size: float = COORDINATE_SIZE) -> int:
    """Cell 1..9 (row by row) of the 3 x 3 grid that holds the centre of the visible part of the box."""
    x1, y1, x2, y2 = clipped(box, size) or box
    column = min(max(int((x1 + x2) / 2 / size * 3), 0), 2)
    row = min(max(int((y1 + y2) / 2 / size * 3), 0), 2)
    return row * 3 + column + 1

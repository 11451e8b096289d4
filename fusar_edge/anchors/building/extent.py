"""What a build covers: the box of cells in each zone, on the pieces that it is worked on in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fusar_edge.anchors.building.pieces import piece_cells
from fusar_edge.anchors.sources.source import Cells, Source
from fusar_edge.anchors.zones import lonlat_bounds
from fusar_edge.errors import AnchorError

if TYPE_CHECKING:
    from fusar_edge.anchors.areas.area import Area

Extent = dict[str, tuple[Cells, list[int]]]
"""Zone -> its box of cells, all years together, and its years."""


def extent_from_sources(sources: list[Source], years: Sequence[int], area: Area | None, spacing_m: int) -> Extent:
    """The cells that the sources and the area touch. AnchorError where there is none."""
    boxes: Extent = {}
    for source in sources:
        for layer, cells in source.layers().items():
            if years and layer.year not in years:
                continue
            box, held = boxes.get(layer.zone, (cells, []))
            boxes[layer.zone] = box.union(cells), sorted({*held, layer.year})
    if area is not None:
        asked = {zone: area.cells(zone, spacing_m) for zone in boxes}
        step = piece_side(sources, spacing_m)
        cut = {zone: (snapped(boxes[zone][0], cells, step), boxes[zone][1]) for zone, cells in asked.items() if cells}
        boxes = {zone: (box, held) for zone, (box, held) in cut.items() if box}
    if not boxes:
        raise AnchorError(_nothing(sources, years, area, spacing_m))
    return dict(sorted(boxes.items()))


def _nothing(sources: list[Source], years: Sequence[int], area: Area | None, spacing_m: int) -> str:
    """What the first sources hold, beside what was asked for."""
    held = []
    for source in sources[:3]:
        for layer, cells in sorted(source.layers().items())[:2]:
            west, south, east, north = lonlat_bounds(layer.zone, *(float(v * spacing_m) for v in cells))
            held.append(f"{source.location} ({layer.year}, lon {west:.4f}..{east:.4f}, lat {south:.4f}..{north:.4f})")
    asked = [f"years {', '.join(map(str, years))}"] if years else []
    if area is not None:
        west, south, east, north = area.bounds
        asked.append(f"lon {west:.4f}..{east:.4f}, lat {south:.4f}..{north:.4f}")
    return f"{'; '.join(held)}: nothing in what was asked for ({'; '.join(asked)}); give sources that cover it"


def snapped(box: Cells, area: Cells, step: int) -> Cells | None:
    """The part of a box that an area touches, in whole pieces from the box's north-west corner.

    So pieces stay on the blocks of the published files, which are then decoded once; a shard outside gets no file.
    """
    part = box.overlap(area)
    if part is None:
        return None
    west, east = (part.col0 - box.col0) // step, -(-(part.col1 - box.col0) // step)
    north, south = (box.row1 - part.row1) // step, -(-(box.row1 - part.row0) // step)
    return Cells(
        box.col0 + west * step,
        max(box.row0, box.row1 - south * step),
        min(box.col1, box.col0 + east * step),
        box.row1 - north * step,
    )


def piece_side(sources: list[Source], spacing_m: int) -> int:
    """Cells along the side of a piece of work."""
    return piece_cells(spacing_m, spacing_m if all(source.cell_is_pixel for source in sources) else None)


def windows(box: Cells, side: int) -> Iterator[Cells]:
    """Windows of a zone's box, from the north-west."""
    for top in range(box.row1, box.row0, -side):
        for left in range(box.col0, box.col1, side):
            yield Cells(left, max(top - side, box.row0), min(left + side, box.col1), top)

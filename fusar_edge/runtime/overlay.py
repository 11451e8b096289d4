"""A picture of an interpreted scene: tiles, boxes, grid cells, counts and captions over the SAR image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fusar_edge.runtime.geojson import credit_lines
from fusar_edge.runtime.interpreter import Interpretation, SceneResult
from fusar_edge.runtime.tile import Record
from fusar_edge.sar.scene import Scene
from fusar_edge.sar.tiles import TileWindow

LARGEST_PX, SMALLEST_PX = 2000, 1400
"""Longer side of the picture: a larger scene is averaged down, a smaller one enlarged."""
FONT_PX, LINE_PX, PAD_PX = 17, 22, 6
SMALLEST_PANEL_PX = 110
"""A tile narrower than this in the picture gets no text."""
BOX, CELL, TILE, NODATA = (255, 64, 64), (64, 200, 255), (255, 214, 10), (24, 28, 52)
BACKING = (0, 0, 0, 176)

Rectangle = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of the picture."""


def overlay_from_result(scene: Scene, result: SceneResult, interpretation: Interpretation) -> Any:
    """The picture (PIL.Image, RGB) of one scene, which must be open."""
    preview = _preview(scene)
    view = _View.of(preview, scene)
    picture = _picture(preview, view)
    draw = ImageDraw.Draw(picture, "RGBA")
    for record in result.records:
        if record.task == "grid" and record.answer.parsed.ok:
            _shade_cells(draw, view, record)
    for window in result.windows:
        draw.rectangle(view.rectangle(_corners(window)), outline=(*TILE, 110))
    boxes = [view.rectangle(detection.box) for detection in result.detections]
    asked = {record.tile for record in result.records}
    for index, window in enumerate(result.windows):
        lines = _tile_lines(result, index) if index in asked else ["no data"]
        _draw_panel(draw, view.rectangle(_own_area(window, result.windows)), lines, boxes)
    for detection, box in zip(result.detections, boxes, strict=True):
        _draw_box(draw, view, box, f"{detection.label} {detection.confidence:.2f}")
    return _with_legend(picture, _legend(result, interpretation))


@dataclass(frozen=True)
class _View:
    """Scene pixels -> picture pixels."""

    scale: float
    width: int
    height: int

    @classmethod
    def of(cls, preview: npt.NDArray[np.float32], scene: Scene) -> _View:
        longer = max(scene.width, scene.height)
        scale = min(max(longer, SMALLEST_PX), LARGEST_PX) / longer
        return cls(scale, max(round(scene.width * scale), 1), max(round(scene.height * scale), 1))

    def rectangle(self, box: Sequence[float]) -> Rectangle:
        x1, y1, x2, y2 = (v * self.scale for v in box)
        return x1, y1, max(min(x2, self.width - 1), x1), max(min(y2, self.height - 1), y1)


def _preview(scene: Scene) -> npt.NDArray[np.float32]:
    """Grey [h, w] averaged down to at most LARGEST_PX, NaN where no pixel is valid; read in strips."""
    step = -(-max(scene.width, scene.height) // LARGEST_PX)
    strip = max(512 // step, 1) * step
    parts = []
    for top in range(0, scene.height, strip):
        image = scene.read(TileWindow(top, 0, min(strip, scene.height - top), scene.width))
        parts.append(_averaged(image.grey, image.valid, step))
    return np.concatenate(parts)


def _averaged(grey: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], step: int) -> npt.NDArray[np.float32]:
    """Means of the valid pixels of step x step blocks."""
    rows, cols = (range(0, length, step) for length in grey.shape)
    total = np.add.reduceat(np.add.reduceat(grey.astype(np.float64), rows, axis=0), cols, axis=1)
    number = np.add.reduceat(np.add.reduceat(valid.astype(np.float64), rows, axis=0), cols, axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).astype(np.float32)


def _picture(preview: npt.NDArray[np.float32], view: _View) -> Image.Image:
    """RGB with a contrast for the eye (white at the 99th percentile, square root): it is not what the model sees."""
    seen = np.isfinite(preview)
    white = max(float(np.percentile(preview[seen], 99)), 1e-6) if seen.any() else 1.0
    grey = np.sqrt(np.clip(np.nan_to_num(preview) / white, 0, 1)) * 235
    colour = np.where(seen[..., None], grey[..., None], np.array(NODATA)).astype(np.uint8)
    method = Image.Resampling.BICUBIC if view.width > preview.shape[1] else Image.Resampling.LANCZOS
    return Image.fromarray(colour).resize((view.width, view.height), method)


def _corners(window: TileWindow) -> tuple[float, float, float, float]:
    return window.col_off, window.row_off, window.col_off + window.width, window.row_off + window.height


def _own_area(window: TileWindow, windows: Sequence[TileWindow]) -> tuple[float, float, float, float]:
    """The part of a tile that is nearer to its centre than to its neighbours': text there hides no neighbour's."""
    x1, x2 = _half_way(window.col_off, window.width, {w.col_off for w in windows})
    y1, y2 = _half_way(window.row_off, window.height, {w.row_off for w in windows})
    return x1, y1, x2, y2


def _half_way(start: int, length: int, starts: set[int]) -> tuple[float, float]:
    """Along one axis: from the middle of the overlap with the tile before to that with the tile after."""
    before = max((s for s in starts if s < start), default=None)
    after = min((s for s in starts if s > start), default=None)
    low = start if before is None else (before + length + start) / 2
    high = start + length if after is None else (start + length + after) / 2
    return low, high


def _shade_cells(draw: ImageDraw.ImageDraw, view: _View, record: Record) -> None:
    x1, y1, _, _ = _corners(record.window)
    w, h = record.window.width / 3, record.window.height / 3
    for cell in record.answer.parsed.value:
        row, col = divmod(cell - 1, 3)
        box = x1 + col * w, y1 + row * h, x1 + (col + 1) * w, y1 + (row + 1) * h
        draw.rectangle(view.rectangle(box), fill=(*CELL, 40), outline=(*CELL, 120))


def _draw_box(draw: ImageDraw.ImageDraw, view: _View, box: Rectangle, text: str) -> None:
    x1, y1, _, y2 = box
    draw.rectangle(box, outline=(*BOX, 255), width=2)
    width, height = _font(14).getlength(text) + 4, 17
    left = min(x1, max(view.width - width, 0))
    top = y2 + 1 if y2 + height < view.height else y1 - height
    draw.rectangle((left, top, left + width, top + height), fill=BACKING)
    draw.text((left + 2, top), text, font=_font(14), fill=BOX)


def _tile_lines(result: SceneResult, tile: int) -> list[str]:
    """What was said about a tile, short answers first; boxes and cells are drawn, so their texts are not repeated."""
    mine = [record for record in result.records if record.tile == tile]
    lines = [f"tile {tile}"]
    for task in ("count", "grid", "detect", "classify", "caption"):
        for record in (r for r in mine if r.task == task):
            answer = record.answer
            if not answer.parsed.ok:
                lines.append(f"{task}: not parsed")
            elif task == "detect":
                lines.append(f"detect: {len(record.detections)}")
            elif task == "caption":
                lines += answer.parsed.text.strip().splitlines()
            else:
                lines.append(f"{task}: {answer.parsed.text.strip()}")
            lines[-1] += f" ({answer.generation.confidence:.2f})"
    return lines


def _draw_panel(draw: ImageDraw.ImageDraw, area: Rectangle, lines: Sequence[str], boxes: Sequence[Rectangle]) -> None:
    """Text in the corner of an area that covers the fewest boxes, wrapped to it, cut at two thirds of its height."""
    x1, y1, x2, y2 = area
    if x2 - x1 < SMALLEST_PANEL_PX:
        return
    columns = max(int((x2 - x1 - 4 * PAD_PX) / _font(FONT_PX).getlength("n")), 8)
    rows = max(int((y2 - y1) * 2 / 3 / LINE_PX), 1)
    wrapped = [part for line in lines for part in textwrap.wrap(line, columns) or [""]]
    if len(wrapped) > rows:
        wrapped = [*wrapped[: rows - 1], "..."]
    width = max(_font(FONT_PX).getlength(line) for line in wrapped) + 2 * PAD_PX
    height = len(wrapped) * LINE_PX + PAD_PX
    corners = [(x, y) for y in (y1 + PAD_PX, y2 - PAD_PX - height) for x in (x1 + PAD_PX, x2 - PAD_PX - width)]
    left, top = min(corners, key=lambda at: _covered((*at, at[0] + width, at[1] + height), boxes))
    draw.rectangle((left, top, left + width, top + height), fill=BACKING)
    for number, line in enumerate(wrapped):
        draw.text((left + PAD_PX, top + number * LINE_PX + 2), line, font=_font(FONT_PX), fill="white")


def _covered(panel: Rectangle, boxes: Sequence[Rectangle]) -> int:
    return sum(b[0] < panel[2] and panel[0] < b[2] and b[1] < panel[3] and panel[1] < b[3] for b in boxes)


def _legend(result: SceneResult, interpretation: Interpretation) -> list[tuple[Any, str]]:
    """(colour of a swatch or None, text) of each line under the picture."""
    bundle = interpretation.bundle
    settings = bundle.settings
    origin = "simulated scene" if result.simulated else f"scene, {result.acquired or 'time unknown'}"
    tiles = f"{len(result.windows)} tiles of {settings.tile_px} px"
    no_data = f", {result.skipped} without data" if result.skipped else ""
    boxes = sum(detection.seen for detection in result.detections)
    lines: list[tuple[Any, str]] = [
        (None, f"{result.path.name}: {origin}, {result.width} x {result.height} px, {result.crs_name}"),
        (None, f"bundle {settings.name}, {settings.precision}, {settings.engine}, {bundle.sha256[:12]}"),
        (TILE, f"{tiles}{no_data}; in brackets: confidence, the geometric mean of token probabilities"),
    ]
    if "detect" in interpretation.tasks:
        lines.append((BOX, f"{len(result.detections)} detections, merged from {boxes} boxes of overlapping tiles"))
    if "grid" in interpretation.tasks:
        lines.append((CELL, f"cells of each tile's 3 x 3 grid that are said to hold a {interpretation.label}"))
    return [*lines, *((None, credit) for credit in credit_lines(interpretation))]


def _with_legend(picture: Image.Image, lines: Sequence[tuple[Any, str]]) -> Image.Image:
    font = _font(FONT_PX)
    texts = []
    for colour, text in lines:
        columns = max(int((picture.width - 50) / (font.getlength("n") * 0.95)), 20)
        parts = textwrap.wrap(text, columns)
        texts += [(colour if i == 0 else None, part) for i, part in enumerate(parts)]
    whole = Image.new("RGB", (picture.width, picture.height + len(texts) * LINE_PX + 2 * PAD_PX), (16, 16, 16))
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for number, (colour, text) in enumerate(texts):
        top = picture.height + PAD_PX + number * LINE_PX
        if colour:
            draw.rectangle((PAD_PX, top + 4, PAD_PX + 20, top + 16), outline=colour, width=2)
        draw.text((34 if colour else PAD_PX, top), text, font=font, fill="white")
    return whole


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)

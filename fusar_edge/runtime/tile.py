"""One tile of a scene: read and prepared, seen in a batch, asked; what it said is a `Record` for each question."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusar_edge.data.truth import Box, Target, clipped
from fusar_edge.runtime.backend import Floats
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.runtime.detections import Detection, scene_box, tile_box, touches_inner_edge
from fusar_edge.runtime.session import Answer, SeenInput, Session
from fusar_edge.sar.image import resized
from fusar_edge.sar.scene import Scene, TileImage
from fusar_edge.sar.tiles import TileWindow

if TYPE_CHECKING:
    from fusar_edge.anchors.table import Anchors, AnchorTable


@dataclass(frozen=True)
class Record:
    """One answer about one tile."""

    tile: int
    """Index in the scene's plan of tiles."""
    window: TileWindow
    task: str
    answer: Answer
    box: Box | None
    """What `classify` was asked about, in pixels of the scene."""
    detections: tuple[Detection, ...]
    """Boxes of a parsed `detect` answer."""
    anchors_used: int
    """AlphaEarth vectors that took part; 0 is plain Qwen2.5-VL."""
    anchors_missing: dict[str, int]
    """Nodes of the tile without a vector by reason: masked, outside, no_year."""
    anchor_years: dict[int, int]
    """Vectors that took part by year: where the scene's year has none at a place, the nearest one's is taken."""
    latency_ms: dict[str, float]
    """read, anchors, vision and prefix are the tile's, the same in all its records; prefill and decode the answer's."""


class Tile:
    """One tile while it is being interpreted: made and prepared by who reads the scene, then looked at and asked.

    One thread may read and another ask, one after the other.
    """

    def __init__(self, scene: Scene, index: int, window: TileWindow, coordinate_size: int) -> None:
        self.index, self.window = index, window
        self.size = float(coordinate_size)
        self.scene_size = scene.width, scene.height
        self.latency_ms: dict[str, float] = {}
        self.found: list[Box] = []
        self.anchors: Anchors | None = None
        self.input: SeenInput | None = None
        """What vision takes, once it is prepared."""
        self.visual: Floats | None = None
        """Its visual tokens, once it was seen."""
        start = time.perf_counter()
        self.image: TileImage | None = scene.read(window)
        self.latency_ms["read"] = (time.perf_counter() - start) * 1e3

    @property
    def empty(self) -> bool:
        """Without a valid pixel: there is nothing to ask about."""
        return self.image is not None and not self.image.valid.any()

    def prepare(self, scene: Scene, look_up: AnchorLookup | None, settings: BundleSettings) -> None:
        """Look its anchors up and bring it to the size that vision takes; `image` is let go."""
        assert self.image is not None, "a tile is prepared once"
        positions = None
        start = time.perf_counter()
        if look_up is not None:
            from fusar_edge.anchors.grid import grid_positions

            positions = grid_positions(settings.anchor_nodes)
            self.anchors = look_up(scene, self.window, settings.anchor_nodes)
        self.latency_ms["anchors"] = (time.perf_counter() - start) * 1e3
        self.input = SeenInput(resized(self.image.grey, settings.image_size), self.anchors, positions)
        self.image = None

    def answers(self, session: Session, tasks: Sequence[str], label: str, boxes: Sequence[Box] | None) -> list[Record]:
        """Take in the tile, which was seen, and ask each task."""
        assert self.visual is not None, "see_tiles comes first"
        self.latency_ms["prefix"] = session.take(self.visual)
        return [self._ask(session, task, label, box) for task in tasks for box in self._subjects(task, boxes)]

    def _subjects(self, task: str, boxes: Sequence[Box] | None) -> Iterable[Box | None]:
        """What a task is asked about: the tile (None), or for `classify` each box, in pixels of the scene."""
        if task != "classify":
            return [None]
        return [box for box in (self.found if boxes is None else boxes) if self._visible(box)]

    def _ask(self, session: Session, task: str, label: str, box: Box | None) -> Record:
        place = self._visible(box) if box else None
        answer = session.ask(task, label, place)
        found = self._detections(answer) if task == "detect" and answer.parsed.ok else ()
        self.found = [d.box for d in found] or self.found
        own = {"prefill": answer.generation.prefill_ms, "decode": answer.generation.decode_ms}
        latency = {**self.latency_ms, **own}
        counts = self.anchors.counts if self.anchors else {}
        missing = {reason: count for reason, count in counts.items() if reason != "found" and count}
        years = self.anchors.years if self.anchors else {}
        used = counts.get("found", 0)
        return Record(self.index, self.window, task, answer, box, found, used, missing, years, latency)

    def _visible(self, box: Box) -> Box | None:
        """A scene box in this tile's answer coordinates; None unless its centre is in the tile."""
        x1, y1, x2, y2 = place = tile_box(box, self.window, self.size)
        inside = 0 <= (x1 + x2) / 2 < self.size and 0 <= (y1 + y2) / 2 < self.size
        return clipped(place, self.size) if inside else None

    def _detections(self, answer: Answer) -> tuple[Detection, ...]:
        targets: tuple[Target, ...] = answer.parsed.value
        confidence = answer.generation.confidence
        placed = [(scene_box(t.box, self.window, self.size), t.label) for t in targets]
        return tuple(
            Detection(box, label, confidence, self.index, touches_inner_edge(box, self.window, *self.scene_size))
            for box, label in placed
        )


def see_tiles(session: Session, tiles: Sequence[Tile]) -> None:
    """Vision for tiles that were prepared, in as few runs as the bundle allows; each is charged an equal share."""
    inputs = [tile.input for tile in tiles if tile.input is not None]
    assert len(inputs) == len(tiles), "prepare comes first"
    start = time.perf_counter()
    seen = session.see(inputs)
    share_ms = (time.perf_counter() - start) * 1e3 / len(tiles)
    for tile, visual in zip(tiles, seen, strict=True):
        tile.visual, tile.input = visual, None
        tile.latency_ms["vision"] = share_ms


@dataclass(frozen=True)
class AnchorLookup:
    """Anchors for the tiles of one scene."""

    table: AnchorTable
    year: int | None
    nearest: bool

    def __call__(self, scene: Scene, window: TileWindow, nodes: int) -> Anchors:
        from fusar_edge.anchors.grid import grid_pixels

        row, col = grid_pixels(nodes, window.height, window.width, window.row_off, window.col_off).T
        place = scene.geolocation
        assert place is not None, "open_scene refuses a scene without place"
        return self.table.lookup_xy(*place.projected(col, row), place.crs, self.year, nearest=self.nearest)

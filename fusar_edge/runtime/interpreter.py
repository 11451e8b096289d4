"""SAR scenes -> records: every tile is read, looked at once, and asked each task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fusar_edge.data.tasks import TASKS
from fusar_edge.data.truth import Box, Target, clipped
from fusar_edge.errors import InputError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.detections import Detection, Located, merged, scene_box, tile_box, touches_inner_edge
from fusar_edge.runtime.session import Answer, Session, check_table
from fusar_edge.sar.image import resized
from fusar_edge.sar.scene import Scene, TileImage, open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

if TYPE_CHECKING:
    from fusar_edge.anchors.table import Anchors, AnchorTable

Progress = Callable[[int, int, str], None]
"""Tiles done, tiles in all, what was said last."""


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


@dataclass
class SceneResult:
    """What was said about one scene."""

    path: Path
    sha256: str
    width: int
    height: int
    kind: str
    acquired: str | None
    simulated: bool
    crs_name: str
    located: Located
    """Pixels -> longitude and latitude; also when the scene is closed."""
    windows: list[TileWindow]
    anchor_year: int | None = None
    """Year that the anchors were looked up for; None without a table. `Record.anchor_years` says what was found."""
    skipped: int = 0
    """Tiles without a valid pixel: nothing was asked about them."""
    records: list[Record] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)
    """Of the whole scene, doubles of overlapping tiles merged."""


@dataclass
class Interpretation:
    """Scenes interpreted with one bundle."""

    bundle: Bundle
    tasks: tuple[str, ...]
    label: str
    table_sha256: str | None
    scenes: list[SceneResult]


def interpret(
    bundle: Bundle,
    scene_paths: Sequence[str | Path],
    tasks: Sequence[str] = ("caption",),
    *,
    anchors: AnchorTable | None = None,
    year: int | None = None,
    label: str = "ship",
    boxes: Sequence[Box] | None = None,
    overlap_px: int | None = None,
    band: int | None = None,
    values: str = "auto",
    threads: int = 0,
    progress: Progress | None = None,
    session: Session | None = None,
) -> Interpretation:
    """Interpret scenes tile by tile.

    `classify` asks about `boxes` (pixels of the one scene that is given then), else about what `detect` finds, which
    it implies. `overlap_px` None: the bundle's. `year` of the anchors: given, and then no other is taken; else at each
    place the nearest to the scene's acquisition, or the latest.
    """
    order = _ordered_tasks(tasks, boxes)
    if not scene_paths or (boxes is not None and len(scene_paths) != 1):
        raise InputError(f"{len(scene_paths)} scenes: give at least one, and exactly one where boxes are given")
    if anchors is not None:
        check_table(bundle, anchors)
    session = session or Session(bundle, threads)
    results = []
    for path in scene_paths:
        with open_scene(path, band=band, values=values, radiometry=bundle.radiometry) as scene:
            result = _new_result(Path(path), scene, bundle, overlap_px)
            result.anchor_year = _anchor_year(anchors, year, result.acquired)
            look_up = None if anchors is None else AnchorLookup(anchors, result.anchor_year, nearest=year is None)
            interpret_scene(session, scene, result, order, look_up, label, boxes, progress)
        results.append(result)
    table_sha256 = sha256_file(anchors.path / FILENAME) if anchors else None
    return Interpretation(bundle, order, label, table_sha256, results)


def interpret_scene(
    session: Session,
    scene: Scene,
    result: SceneResult,
    tasks: Sequence[str],
    anchors: AnchorLookup | None = None,
    label: str = "ship",
    boxes: Sequence[Box] | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill in `result`: read -> anchors -> look -> ask each task -> record."""
    for index, window in enumerate(result.windows):
        said = ""
        tile = _Tile(session, scene, index, window)
        if not tile.image.valid.any():
            result.skipped += 1
        else:
            tile.look(anchors)
            for task in tasks:
                for box in tile.subjects(task, boxes):
                    result.records.append(tile.ask(task, label, box))
                    said = result.records[-1].answer.parsed.text
        if progress:
            progress(index + 1, len(result.windows), said)
    result.detections = merged([d for record in result.records for d in record.detections])


class _Tile:
    """One tile while it is being interpreted."""

    def __init__(self, session: Session, scene: Scene, index: int, window: TileWindow) -> None:
        self.session, self.scene, self.index, self.window = session, scene, index, window
        self.size = float(session.bundle.settings.coordinate_size)
        self.latency_ms: dict[str, float] = {}
        self.found: list[Box] = []
        self.anchors: Anchors | None = None
        start = time.perf_counter()
        self.image: TileImage = scene.read(window)
        self.latency_ms["read"] = (time.perf_counter() - start) * 1e3

    def look(self, look_up: AnchorLookup | None) -> None:
        settings = self.session.bundle.settings
        positions = None
        start = time.perf_counter()
        if look_up is not None:
            from fusar_edge.anchors.grid import grid_positions

            positions = grid_positions(settings.anchor_nodes)
            self.anchors = look_up(self.scene, self.window, settings.anchor_nodes)
        self.latency_ms["anchors"] = (time.perf_counter() - start) * 1e3
        grey = resized(self.image.grey, settings.image_size)
        for part, ms in self.session.look(grey, self.anchors, positions).items():
            self.latency_ms[part.removesuffix("_ms")] = ms

    def subjects(self, task: str, boxes: Sequence[Box] | None) -> Iterable[Box | None]:
        """What a task is asked about: the tile (None), or for `classify` each box, in pixels of the scene."""
        if task != "classify":
            return [None]
        return [box for box in (self.found if boxes is None else boxes) if self._visible(box)]

    def ask(self, task: str, label: str, box: Box | None) -> Record:
        place = self._visible(box) if box else None
        answer = self.session.ask(task, label, place)
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
        size = self.scene.width, self.scene.height
        return tuple(
            Detection(box, label, confidence, self.index, touches_inner_edge(box, self.window, *size))
            for box, label in placed
        )


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


def _anchor_year(table: AnchorTable | None, year: int | None, acquired: str | None) -> int | None:
    if table is None:
        return None
    if year is not None and year not in table.years:
        raise InputError(f"{table.path} holds no year {year}; it holds: {', '.join(map(str, table.years))}")
    if year is None and acquired:
        return min(table.years, key=lambda held: (abs(held - int(acquired[:4])), held))
    return year or max(table.years)


def _new_result(path: Path, scene: Scene, bundle: Bundle, overlap_px: int | None) -> SceneResult:
    settings = bundle.settings
    overlap = settings.overlap_px if overlap_px is None else overlap_px
    windows = plan_tiles(scene.width, scene.height, settings.tile_px, overlap)
    assert scene.geolocation is not None, "open_scene refuses a scene without place"
    facts = (scene.width, scene.height, str(scene.kind), scene.acquired, scene.simulated)
    return SceneResult(path, sha256_file(path), *facts, scene.crs_name, scene.geolocation, windows)


def _ordered_tasks(tasks: Sequence[str], boxes: Sequence[Box] | None) -> tuple[str, ...]:
    """Each task once, in the order asked, but `detect` before the `classify` that needs it."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise InputError(f"--task {', '.join(unknown) or '(none)'}: allowed are {', '.join(TASKS)}")
    order = list(dict.fromkeys(tasks))
    if "classify" in order and boxes is None:
        order = [*(t for t in order if t not in ("detect", "classify")), "detect", "classify"]
    return tuple(order)

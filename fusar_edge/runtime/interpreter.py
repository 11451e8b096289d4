"""SAR scenes -> records: every tile is read, looked at once, and asked each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fusar_edge.data.tasks import TASKS
from fusar_edge.data.truth import Box
from fusar_edge.errors import InputError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.detections import Detection, Located, merged
from fusar_edge.runtime.session import Session, check_table
from fusar_edge.runtime.tile import AnchorLookup, Record, Tile, see_tiles
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow, plan_tiles

if TYPE_CHECKING:
    from fusar_edge.anchors.table import AnchorTable

Progress = Callable[[int, int, str], None]
"""Tiles done, tiles in all, what was said last."""


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
    order = ordered_tasks(tasks, boxes)
    if not scene_paths or (boxes is not None and len(scene_paths) != 1):
        raise InputError(f"{len(scene_paths)} scenes: give at least one, and exactly one where boxes are given")
    if anchors is not None:
        check_table(bundle, anchors)
    session = session or Session(bundle, threads)
    results = []
    for path in scene_paths:
        with open_scene(path, band=band, values=values, radiometry=bundle.radiometry) as scene:
            result = _new_result(Path(path), scene, bundle, overlap_px)
            result.anchor_year = anchor_year_of(anchors, year, result.acquired)
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
    settings = session.bundle.settings
    for index, window in enumerate(result.windows):
        said = ""
        tile = Tile(scene, index, window, settings.coordinate_size)
        if tile.empty:
            result.skipped += 1
        else:
            tile.prepare(scene, anchors, settings)
            see_tiles(session, [tile])
            records = tile.answers(session, tasks, label, boxes)
            result.records += records
            said = records[-1].answer.parsed.text if records else ""
        if progress:
            progress(index + 1, len(result.windows), said)
    result.detections = merged([d for record in result.records for d in record.detections])


def anchor_year_of(table: AnchorTable | None, year: int | None, acquired: str | None) -> int | None:
    """Year to look up: the one given (InputError where the table lacks it), else the nearest to the acquisition."""
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


def ordered_tasks(tasks: Sequence[str], boxes: Sequence[Box] | None) -> tuple[str, ...]:
    """Each task once, in the order asked, but `detect` before the `classify` that needs it."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise InputError(f"--task {', '.join(unknown) or '(none)'}: allowed are {', '.join(TASKS)}")
    order = list(dict.fromkeys(tasks))
    if "classify" in order and boxes is None:
        order = [*(t for t in order if t not in ("detect", "classify")), "detect", "classify"]
    return tuple(order)

"""A whole service of which the page is one part, and scenes with answers that a test chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine
from served_app import served

from fusar_edge.runtime.detections import Detection, box_ring
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import plan_tiles
from fusar_edge.service.http.app import make_app
from fusar_edge.service.journal import SceneRow, TileOutcome
from fusar_edge.service.parts import ServiceParts
from fusar_edge.service.results import stored_detections
from fusar_edge.service.service import open_parts, start_parts
from fusar_edge.service.settings import HttpSettings, ModelSettings, ServiceSettings

TILE_PX, OVERLAP_PX = 200, 20
Answer = tuple[str, Any, str, float]
"""Task, value, text, confidence."""


@dataclass
class Station:
    """A service that listens."""

    url: str
    parts: ServiceParts
    folder: Path
    given: int = field(default=0)

    def scene(self, name: str = "harbour.tif", side: int = 380) -> SceneRow:
        """A scene that is accepted and waits: sea, with ships on a grid."""
        self.given += 1
        path = write_harbour(self.folder / f"given-{self.given}.tif", side, self.given)
        return self.parts.intake.offer(path, name=name, source="upload", owned=True)[0]

    def start(self, row: SceneRow) -> None:
        with open_scene(row.path) as scene:
            windows = plan_tiles(scene.width, scene.height, TILE_PX, OVERLAP_PX)
            facts = {
                "width": scene.width, "height": scene.height, "kind": str(scene.kind), "crs": scene.crs_name,
                "acquired": "2021-01-05T13:51:07Z", "simulated": False, "tile_px": TILE_PX, "overlap_px": OVERLAP_PX,
                "tiles": len(windows),
            }  # fmt: skip
        self.parts.journal.start(row.id, facts, len(windows))

    def answer(self, row: SceneRow, index: int, answers: Sequence[Answer], boxes: Sequence[Any] = ()) -> None:
        """One tile is done; `boxes`: (box in pixels of the scene, confidence)."""
        with open_scene(row.path) as scene:
            self.parts.journal.tile_done(row.id, outcome(scene, index, answers, boxes))

    def leave_out(self, row: SceneRow, index: int) -> None:
        self.parts.journal.tile_done(row.id, TileOutcome(index, "skipped", "triage"))

    def finish(self, row: SceneRow) -> None:
        self.parts.journal.finish(row.id, [])


@contextlib.contextmanager
def station(folder: Path, *, engines: bool = False, **http: Any) -> Iterator[Station]:
    """A service on a free port of loopback; without engines scenes wait for what the test says of them."""
    settings = ServiceSettings(
        data_dir=folder / "data",
        http=HttpSettings(port=0, **http),
        model=ModelSettings(tasks=("caption", "count", "detect"), workers=1, threads=1),
    )
    settings.data_dir.mkdir(parents=True)
    with ExitStack() as stack:
        parts = open_parts(settings, stack)
        if engines:
            start_parts(parts, stack)
        yield Station(stack.enter_context(served(make_app(parts), parts)), parts, folder)


def write_harbour(path: Path, side: int, seed: int) -> Path:
    """Speckled sea in power, 10 m pixels off Los Angeles, with a bright ship every 60 px."""
    values = np.random.default_rng(seed).gamma(4.0, 0.0025, (side, side)).astype(np.float32)
    for row in range(30, side - 10, 60):
        for col in range(30, side - 10, 60):
            values[row : row + 4, col : col + 12] = 1.0
    place = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=side, width=side, dtype="float32", **place) as file:
        file.write(values, 1)
    return path


def outcome(scene: Scene, index: int, answers: Sequence[Answer], boxes: Sequence[Any]) -> TileOutcome:
    window = plan_tiles(scene.width, scene.height, TILE_PX, OVERLAP_PX)[index]
    common = {
        "kind": "answer",
        "scene": "harbour.tif",
        "tile": index,
        "question": "What is there?",
        "stop_reason": "eos",
        "tokens": 9,
        "window_px": {"row": window.row_off, "col": window.col_off, "height": window.height, "width": window.width},
        "anchors_used": 0,
        "anchors_missing": {},
        "anchors_years": {},
        "latency_ms": {"read": 4.0, "vision": 15.0, "decode": 130.0},
    }
    geometry = geometry_from_ring(scene.footprint(window))
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {
                **common, "task": task, "value": value, "text": text, "confidence": confidence,
                "parse_status": "failed" if value is None else "parsed",
            },
        }
        for task, value, text, confidence in answers
    ]  # fmt: skip
    found = [Detection(box, "ship", confidence, index, False) for box, confidence in boxes]
    places = [geometry_from_ring(box_ring(detection.box, scene)) for detection in found]
    return TileOutcome(index, "answered", features=features, detections=stored_detections(found, places))

"""An engine that says what it is told, and scenes of small tiles."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.backend import Step
from fusar_edge.runtime.bundle import TOKENIZER, Bundle, open_bundle
from fusar_edge.runtime.cache import KvCache
from fusar_edge.runtime.session import Session
from fusar_edge.service.journal import Journal, NewScene, SceneRow
from fusar_edge.service.pipeline import Pipeline
from fusar_edge.service.settings import ModelSettings, TriageSettings

TILE_PX = 80
BOX = '[{"bbox_2d": [100, 120, 200, 220], "label": "ship"}]'


def small_tiles(**changes: Any) -> Bundle:
    """The default bundle with tiles of 80 px that do not overlap."""
    bundle = open_bundle("default")
    changes = {"tile_px": TILE_PX, "overlap_px": 0, **changes}
    return dataclasses.replace(bundle, settings=msgspec.structs.replace(bundle.settings, **changes))


def said_of(question: str, grey: float) -> str:
    """The count is the tile's grey in percent: an answer tells which tile it was given to."""
    if "How many" in question:
        return str(round(grey * 100))
    return BOX if "detect" in question.lower() else f"Sea of {round(grey * 100)}."


class FakeBackend:
    """Visual tokens carry the image's mean grey; an answer is `said_of` the question and that grey."""

    def __init__(self, bundle: Bundle) -> None:
        self.settings = bundle.settings
        self.batches: list[int] = []
        self.asked: list[float] = []
        """Grey of the image of each question."""
        self.closed_by: threading.Thread | None = None
        self.before_vision: Callable[[list[float]], None] = lambda greys: None
        self.before_question: Callable[[str, float], None] = lambda question, grey: None
        self._tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
        self._grey, self._script = 0.0, list[int]()

    def vision(self, pixels: np.ndarray, anchors: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        greys = pixels.mean((1, 2, 3))
        self.before_vision([float(g) for g in greys])
        self.batches.append(len(pixels))
        tokens = np.zeros((len(pixels), self.settings.cells**2, self.settings.channels), np.float32)
        tokens[:, 0, 0] = greys
        return tokens

    def new_cache(self, capacity: int) -> KvCache:
        s = self.settings
        return KvCache(capacity, (s.layers, 2, 1, s.kv_heads, s.head_dim))

    def step(self, cache: Any, input_ids: np.ndarray, visual: Any, visual_index: np.ndarray, position_ids: Any) -> Step:
        cache.advance(input_ids.shape[1])
        if (visual_index >= 0).any():
            self._grey = float(visual[0, 0, 0])
        elif input_ids.shape[1] > 1:
            question = self._tokenizer.decode(input_ids[0].tolist())
            self.before_question(question, self._grey)
            self.asked.append(self._grey)
            self._script = [*self._tokenizer.encode(said_of(question, self._grey)).ids]
        end = self.settings.eos_ids[0]
        token = self._script.pop(0) if self._script else end
        logits = np.full((1, self.settings.vocab_size), -30.0, np.float32)
        logits[0, token] = 30.0
        return Step(logits, np.array([token], np.int32))

    def close(self) -> None:
        self.closed_by = threading.current_thread()


def write_tiles(
    path: Path, greys: list[list[float]], nodata_at: tuple[int, int] | None = None, grain: bool = False
) -> Path:
    """GeoTIFF of 8-bit tiles, one grey each; 10 m pixels, UTM 11N; 0 is nodata."""
    import rasterio
    from rasterio.transform import Affine

    values = np.kron(np.round(np.array(greys) * 255), np.ones((TILE_PX, TILE_PX))).astype(np.uint8)
    if grain:
        values += np.random.default_rng(0).integers(0, 9, values.shape, np.uint8)
    if nodata_at:
        row, col = (n * TILE_PX for n in nodata_at)
        values[row : row + TILE_PX, col : col + TILE_PX] = 0
    profile = {
        "count": 1,
        "height": values.shape[0],
        "width": values.shape[1],
        "dtype": "uint8",
        "nodata": 0,
        "compress": "deflate",
    }
    place = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
    with rasterio.open(path, "w", driver="GTiff", **profile, **place) as file:
        file.write(values[None])
        file.update_tags(acquired="2021-01-05T14:00:00Z")
    return path


def accept(journal: Journal, bundle: Bundle, path: Path, tasks: tuple[str, ...] = ("count",), **more: Any) -> SceneRow:
    facts = path.stat()
    new = NewScene(
        path=path,
        name=path.name,
        sha256=sha256_file(path),
        size_bytes=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        source="upload",
        owned=False,
        tasks=tasks,
        label="ship",
        bundle_sha256=bundle.sha256,
        **more,
    )
    return journal.accept(new)[0]


def fake_pipeline(
    bundle: Bundle, journal: Journal, backend: FakeBackend | Callable[[], FakeBackend], **more: Any
) -> Pipeline:
    make = backend if callable(backend) else (lambda: backend)
    model = ModelSettings(workers=more.pop("workers", 1), threads=1, **more.pop("model", {}))
    triage = TriageSettings(mode=more.pop("triage", "nodata"))
    return Pipeline(
        bundle, journal, model, triage, open_session=lambda: Session(bundle, backend=make(), grammar=False), **more
    )


class Ended:
    """Waits for scenes to be done or failed; told by the journal's events."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.changed = journal, threading.Condition()
        journal.on_event(self._told)

    def _told(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def until(self, true: Callable[[], bool], timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(true, timeout_s), "nothing more came from the journal"

    def wait(self, *ids: str) -> list[SceneRow]:
        self.until(lambda: all(self.row(i).status in ("done", "failed") for i in ids))
        return [self.row(i) for i in ids]

    def row(self, scene_id: str) -> SceneRow:
        row = self.journal.scene(scene_id)
        assert row is not None
        return row

"""One tile, or a few, interpreted as the runtime interprets them, with a clock at every seam.

Nothing of the runtime is copied: its `Tile` is given a scene and a session that pass everything on and note the time. A
note costs well below a microsecond.

    raster_read  the file's blocks under the tile, decoded, and their validity
    radiometry   SAR values -> grey
    anchors      look-up in the table
    resize       to the side that vision takes
    vision       pixels and anchors -> visual tokens; of a batch each tile's equal share
    prefix       keys and values of image and template, once for all questions
    prefill      one question's tokens, up to the first logits
    ttft         question given -> first token that the model chose: tokenising and prefill. Vision and prefix are not
                 in it: they are the tile's, once for all its questions; nor are tokens that a grammar forces before
    tpot         each further token of an answer, forced ones among them, mean over the answer
    decode       all further tokens
    answer       question given -> parsed answer
    parse        tokens -> text -> value; run a second time on the same tokens, so that its clock is outside `answer`
    write        features -> GeoJSON on disk, atomically
    tile         all of it; the second parse apart
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fusar_edge.bench.observations import Observation
from fusar_edge.bench.workload import Workload, forget_raster
from fusar_edge.data.tasks import parse_answer
from fusar_edge.data.truth import Box
from fusar_edge.manifest import output_file
from fusar_edge.runtime.geojson import answer_feature, collection_bytes, common_properties
from fusar_edge.runtime.session import Answer, Session
from fusar_edge.runtime.tile import Record, Tile, see_tiles
from fusar_edge.sar.scene import Scene, TileImage
from fusar_edge.sar.tiles import TileWindow

LEAVES = (
    "raster_read", "radiometry", "anchors", "resize", "vision", "prefix", "prefill", "decode", "parse", "write",
)  # fmt: skip
"""Parts that do not overlap: with `other` they add up to a tile."""
MADE_OF = {"ttft": "prefill", "tpot": "decode", "answer": "prefill, decode, parse", "tile": "all", "query": "all"}
"""Parts that hold others."""
PARTS = (*LEAVES, *MADE_OF)
REFERENCE = "reference"


class TimedScene:
    """An open scene whose `read` is timed in its two parts; all else is the scene's."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.read_ms = self.radiometry_ms = 0.0
        """Of the last read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scene, name)

    def read(self, window: TileWindow) -> TileImage:
        start = time.perf_counter()
        values, valid = self._scene.values(window)
        between = time.perf_counter()
        image = self._scene.image_from_values(values, valid)
        self.read_ms, self.radiometry_ms = (between - start) * 1e3, (time.perf_counter() - between) * 1e3
        return image


@dataclass
class Asked:
    """When one question was given and its tokens came, seconds of `perf_counter`."""

    task: str
    start: float
    tokens: list[float] = field(default_factory=list)
    end: float = 0.0
    answer: Answer | None = None


class TimedSession:
    """A session whose `ask` notes when each token came; all else is the session's."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.asked: list[Asked] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def ask(
        self,
        task: str,
        label: str = "ship",
        box: Box | None = None,
        question: str | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        times: list[float] = []

        def note(token: int) -> None:
            times.append(time.perf_counter())
            if on_token is not None:
                on_token(token)

        one = Asked(task, time.perf_counter(), times)
        one.answer = self._session.ask(task, label, box, question, note)
        one.end = time.perf_counter()
        self.asked.append(one)
        return one.answer


@dataclass
class TimedTiles:
    """What came of one query of one or several tiles."""

    records: list[list[Record]]
    observations: list[Observation]
    ms: float
    """The whole query, wall time."""


class Stopwatch:
    """Interprets tiles of a workload with clocks. One thread."""

    def __init__(self, session: Session, work: Workload) -> None:
        self.session, self.work = session, work
        self._scene, self._timed = TimedScene(work.scene), TimedSession(session)
        # time.time() may be set while we run; one offset keeps windows and power readings on one clock.
        self._epoch = time.time() - time.perf_counter()
        self._last = 0
        """Tile of the workload that was read last; going back begins a new pass over the scene."""

    def at(self, seconds: float) -> float:
        """Unix seconds of a `perf_counter` reading."""
        return self._epoch + seconds

    def query(self, scenario: str, indices: Sequence[int], name: str, warm_up: bool = False) -> TimedTiles:
        """Read, see together, ask, write; `indices` of the workload's windows. `name` is the query's unit id."""
        start = time.perf_counter()
        notes: list[tuple[str, str, float, float, int]] = []  # part, unit, ms, end, tokens
        tiles = [self._prepared(index, notes) for index in indices]
        begun = time.perf_counter()
        see_tiles(cast(Session, self._timed), tiles)
        seen = time.perf_counter()
        # Every tile of a batch has its share; one window for the energy, that of the batch, would count it double.
        for number, tile in enumerate(tiles, 1):
            end = begun + (seen - begun) * number / len(tiles)
            notes.append(("vision", f"tile {tile.index}", tile.latency_ms["vision"], end, 0))
        records = [self._answered(tile, notes) for tile in tiles]
        end = time.perf_counter()
        whole = (end - start) * 1e3
        for number, tile in enumerate(tiles, 1):
            at = start + (end - start) * number / len(tiles)
            notes.append(("tile", f"tile {tile.index}", whole / len(tiles), at, 0))
        tokens = sum(note[4] for note in notes if note[0] == "answer")
        notes.append(("query", name, whole, end, tokens))
        for index, said in zip(indices, records, strict=True):
            self._parsed_again(index, said, notes)
        made = [
            Observation(scenario=scenario, part=part, unit_id=unit, ms=ms, at=self.at(at), tokens=n, warm_up=warm_up)
            for part, unit, ms, at, n in notes
        ]
        return TimedTiles(records, made, whole)

    def _prepared(self, index: int, notes: list[tuple[str, str, float, float, int]]) -> Tile:
        unit, scene = f"tile {index}", cast(Scene, self._scene)
        if index <= self._last:
            forget_raster()
        self._last = index
        tile = Tile(scene, index, self.work.windows[index], self.session.bundle.settings.coordinate_size)
        now = time.perf_counter()
        notes.append(("raster_read", unit, self._scene.read_ms, now - self._scene.radiometry_ms / 1e3, 0))
        notes.append(("radiometry", unit, self._scene.radiometry_ms, now, 0))
        before = time.perf_counter()
        tile.prepare(scene, self.work.look_up, self.session.bundle.settings)
        now = time.perf_counter()
        resize = max((now - before) * 1e3 - tile.latency_ms["anchors"], 0.0)
        if self.work.look_up is not None:
            notes.append(("anchors", unit, tile.latency_ms["anchors"], now - resize / 1e3, 0))
        notes.append(("resize", unit, resize, now, 0))
        return tile

    def _answered(self, tile: Tile, notes: list[tuple[str, str, float, float, int]]) -> list[Record]:
        unit = f"tile {tile.index}"
        self._timed.asked.clear()
        start = time.perf_counter()
        records = tile.answers(cast(Session, self._timed), self.work.tasks, self.work.label, self.work.boxes)
        prefix = tile.latency_ms["prefix"]
        notes.append(("prefix", unit, prefix, start + prefix / 1e3, 0))
        for asked in self._timed.asked:
            notes.extend(_answer_notes(f"{unit}/{asked.task}", asked))
        before = time.perf_counter()
        self._write(records)
        now = time.perf_counter()
        notes.append(("write", unit, (now - before) * 1e3, now, 0))
        return records

    def _write(self, records: Sequence[Record]) -> None:
        """The tile's features as the service stores them: one GeoJSON, whole or not at all."""
        scene, bundle = self.work.scene, self.session.bundle
        place = scene.geolocation
        assert place is not None, "open_scene refuses a scene without place"
        hashes = {"bundle_sha256": bundle.sha256, "table_sha256": None, "scene_sha256": ""}
        common = common_properties(scene.path.name, scene.acquired, scene.simulated, **hashes)  # type: ignore[arg-type]
        features = [answer_feature(record, place, common) for record in records]
        with output_file(self.work.out, force=True) as path:
            path.write_bytes(collection_bytes({"type": "FeatureCollection", "features": features}))

    def _parsed_again(
        self, index: int, records: Sequence[Record], notes: list[tuple[str, str, float, float, int]]
    ) -> None:
        size = self.session.bundle.settings.coordinate_size
        for record in records:
            ids = list(record.answer.generation.ids)
            start = time.perf_counter()
            parse_answer(record.task, self.session.tokenizer.decode(ids), size)
            now = time.perf_counter()
            notes.append(("parse", f"tile {index}/{record.task}", (now - start) * 1e3, now, 0))


def _answer_notes(unit: str, asked: Asked) -> Iterator[tuple[str, str, float, float, int]]:
    """Parts of one answer. One that ends at once has no token: its first logits came with the prefill."""
    assert asked.answer is not None
    said = asked.answer.generation
    steps = said.decode_tokens if said.decode_ms else 0
    tokens = len(said.ids)
    logits = asked.start + said.prefill_ms / 1e3
    # What is noted before the first logits was forced.
    first = next((at for at in asked.tokens if at >= logits), logits)
    yield "ttft", unit, (first - asked.start) * 1e3, first, 0
    yield "prefill", unit, said.prefill_ms, first, 0
    yield "answer", unit, (asked.end - asked.start) * 1e3, asked.end, tokens
    if steps:
        last = first + said.decode_ms / 1e3
        yield "decode", unit, said.decode_ms, last, steps
        yield "tpot", unit, said.decode_ms / steps, last, 1

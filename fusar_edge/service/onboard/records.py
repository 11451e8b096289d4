"""What can go down: a scene's summary, its detections and answers, each with its place, its worth and its bytes.

Much of a GeoJSON feature stays on board: questions, latencies, hashes, the text of a detection (its boxes say the
same), answers that did not parse (the summary counts them). The scene's id and the tile's index find it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from fusar_edge.data.truth import Box
from fusar_edge.runtime.detections import Detection, merged
from fusar_edge.sar.tiles import plan_tiles
from fusar_edge.service.onboard.places import centre, pixel_axes, scene_centre

if TYPE_CHECKING:
    from fusar_edge.service.journal import SceneRow, TileOutcome

Json = dict[str, Any]

HALF_LIFE_S = 24 * 3600.0
"""A record's worth halves in so long."""
PRIORITY_DOUBLES = 10
"""So much more priority of the scene doubles the worth of its records."""
NOTHING_THERE = 0.25
"""Worth of "no ship here" to that of a ship."""


class Kind(IntEnum):
    scene = 0
    detection = 1
    classify = 2
    count = 3
    grid = 4
    caption = 5


WORTH = {
    Kind.scene: 4.0,
    Kind.detection: 8.0,
    Kind.classify: 4.0,
    Kind.count: 2.0,
    Kind.grid: 1.5,
    Kind.caption: 1.0,
}
"""Of a record of confidence 1, new, of a scene of priority 0."""


class SceneHead(msgspec.Struct, frozen=True, array_like=True):
    """What every packet with records of a scene says of it."""

    id: str
    """16 hex digits, as in the journal."""
    name: str
    time: int | None
    """Start of the acquisition, Unix seconds."""
    simulated: bool
    status: str
    """As in the journal; queued: failed, and to be tried again."""
    lon: float
    """Centre, degrees; as `lat`."""
    lat: float
    width: int
    height: int
    axes: tuple[float, float, float, float]
    """Metres east and north of a pixel along a row, then along a column; the sign of the first pair is not defined."""
    tiles: int
    answered: int
    skipped: int
    not_parsed: int
    """Answers that did not parse and stay on board."""
    priority: int = 0
    accepted_at: float = 0.0


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One row of a packet."""

    kind: Kind
    tile: int
    """Index in the scene's plan; 0 for a scene."""
    lon: float
    """Centre of the box or tile, degrees, within 180 of the scene's; as `lat`."""
    lat: float
    width: int
    """px of the scene; as `height`."""
    height: int
    confidence: int
    """Percent."""
    text: str = ""
    """Class of a detection or of `classify`, the class that was counted, or a caption."""
    number: int = 0
    """count: targets; grid: bit n for cell n + 1; detection: 2 x merged boxes + (1 where a tile's edge cuts it)."""


def worth(record: Record, scene: SceneHead, now: float) -> float:
    """Value of one record on the ground, above 0: kind x confidence x priority x freshness."""
    value = WORTH[record.kind] * max(record.confidence, 1) / 100.0
    if record.kind in (Kind.count, Kind.grid) and record.number == 0:
        value *= NOTHING_THERE
    age_s = max(now - scene.accepted_at, 0.0)
    return float(value * 2.0 ** (scene.priority / PRIORITY_DOUBLES - min(age_s / HALF_LIFE_S, 60.0)))


def head_from_row(row: SceneRow, outcomes: Sequence[TileOutcome]) -> SceneHead:
    """Of a scene that was begun; `outcomes` are all that the journal holds."""
    facts = row.facts
    lon, lat = scene_centre(facts)
    features = [feature for outcome in outcomes for feature in outcome.features]
    unparsed = sum(feature["properties"]["parse_status"] != "parsed" for feature in features)
    answered = sum(outcome.status == "answered" for outcome in outcomes)
    return SceneHead(
        id=row.id,
        name=row.name,
        time=_unix_seconds(facts["acquired"]),
        simulated=bool(facts["simulated"]),
        status=row.status,
        lon=lon,
        lat=lat,
        width=facts["width"],
        height=facts["height"],
        axes=pixel_axes(features),
        tiles=row.tiles_total,
        answered=answered,
        skipped=len(outcomes) - answered,
        not_parsed=unparsed,
        priority=row.priority,
        accepted_at=row.accepted_at,
    )


def records_from_outcomes(row: SceneRow, outcomes: Sequence[TileOutcome]) -> dict[str, Record]:
    """Key -> record, of all that will not change any more: a key never names another record later."""
    found, lon0 = {}, scene_centre(row.facts)[0]
    if row.status in ("done", "failed"):
        found[f"scene/{row.status}/{row.attempts}"] = Record(Kind.scene, 0, 0.0, 0.0, 0, 0, 100)
    for outcome in outcomes:
        for number, feature in enumerate(outcome.features):
            record = _record_from_answer(feature, row.label, lon0)
            if record is not None:
                found[f"{outcome.index}/{number}"] = record
    found.update(_final_detections(row.facts, outcomes))
    return found


def _record_from_answer(feature: Json, label: str, lon0: float) -> Record | None:
    own = feature["properties"]
    if own["task"] == "detect" or own["parse_status"] != "parsed":
        return None
    kind, window = Kind[own["task"]], own["window_px"]
    geometry, size = feature["geometry"], (window["width"], window["height"])
    if kind is Kind.classify:
        x1, y1, x2, y2 = own["box"]["box_px"]
        geometry, size = own["box"]["geometry"], (round(x2 - x1), round(y2 - y1))
    number = own["value"] if kind is Kind.count else 0
    if kind is Kind.grid:
        number = sum(1 << (cell - 1) for cell in own["value"])
    text = label if kind in (Kind.count, Kind.grid) else own["text"].strip()
    return Record(kind, own["tile"], *centre(geometry, lon0), *size, _percent(own["confidence"]), text, number)


def _final_detections(facts: Json, outcomes: Sequence[TileOutcome]) -> dict[str, Record]:
    """Doubles of overlapping tiles merged; a box that a tile still to come may see as well waits for that tile."""
    lon0 = scene_centre(facts)[0]
    windows = plan_tiles(facts["width"], facts["height"], facts["tile_px"], facts["overlap_px"])
    open_ = set(range(len(windows))) - {outcome.index for outcome in outcomes}
    edges = [(windows[i].col_off, windows[i].row_off, windows[i].width, windows[i].height) for i in sorted(open_)]
    x, y, w, h = np.array(edges, np.float64).reshape(-1, 4).T
    places: dict[tuple[int, Box], tuple[str, Json]] = {}
    detections = []
    for outcome in outcomes:
        for ordinal, kept in enumerate(outcome.detections):
            fields = {name: kept[name] for name in Detection.__dataclass_fields__}
            detection = Detection(**{**fields, "box": tuple(kept["box"])})
            detections.append(detection)
            places.setdefault((detection.tile, detection.box), (f"{outcome.index}/box{ordinal}", kept["geometry"]))
    found = {}
    for detection in merged(detections):
        x1, y1, x2, y2 = detection.box
        if ((x < x2) & (x + w > x1) & (y < y2) & (y + h > y1)).any():
            continue
        key, geometry = places[detection.tile, detection.box]
        size, number = (round(x2 - x1), round(y2 - y1)), 2 * detection.seen + detection.cut
        confidence = _percent(detection.confidence)
        found[key] = Record(
            Kind.detection, detection.tile, *centre(geometry, lon0), *size, confidence, detection.label, number
        )
    return found


def _percent(confidence: float) -> int:
    return round(min(max(confidence, 0.0), 1.0) * 100)


def _unix_seconds(time: str | None) -> int | None:
    if not time:
        return None
    moment = datetime.fromisoformat(time)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())

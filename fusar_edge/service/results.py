"""A scene's stored outcomes -> the GeoJSON that `fusar-edge interpret` writes, and a summary."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.detections import Detection, merged
from fusar_edge.runtime.geojson import (
    Json,
    ScenePart,
    Tally,
    collection_from_parts,
    common_properties,
    detection_feature,
)
from fusar_edge.runtime.interpreter import ordered_tasks
from fusar_edge.service.journal import Journal, SceneRow, TileOutcome


def collection_from_journal(journal: Journal, row: SceneRow, bundle: Bundle) -> Json:
    """GeoJSON of what is known so far, equal to that of `interpret` once the scene is done.

    One foreign member more, `service`: id, status, progress, tiles left out by reason. A scene that was not begun has
    no features and no size. The scene's file is not read.
    """
    facts, stored = row.facts, _Stored()
    answers: list[Json] = []
    for outcome in journal.tiles(row.id):
        stored.add(outcome)
        answers += outcome.features
    common = common_properties(
        row.name,
        facts.get("acquired"),
        bool(facts.get("simulated")),
        bundle_sha256=row.bundle_sha256,
        table_sha256=facts.get("table_sha256"),
        scene_sha256=row.sha256,
    )
    targets = merged(stored.detections)
    detections = [detection_feature(d, stored.geometries[d.tile, d.box], common) for d in targets]
    scene = {
        "file": row.name,
        "sha256": row.sha256,
        "time": facts.get("acquired"),
        "width": facts.get("width"),
        "height": facts.get("height"),
        "values": facts.get("kind"),
        "crs": facts.get("crs"),
        "anchors_year": facts.get("anchor_year"),
        "tiles": facts.get("tiles", 0),
        "tiles_skipped": stored.skipped.total(),
        "detections": len(targets),
    }
    part = ScenePart(scene, common["simulated"], answers, detections)
    tasks = ordered_tasks(row.tasks, None)
    collection = collection_from_parts(bundle, tasks, row.label, facts.get("table_sha256"), [part])
    features = collection.pop("features")
    progress = {
        "id": row.id,
        "status": row.status,
        "reason": row.reason,
        "tiles_done": stored.tiles,
        "skipped": dict(stored.skipped),
    }
    return {**collection, "service": progress, "features": features}


def summary_from_journal(journal: Journal, row: SceneRow) -> Json:
    """What a finished scene's message says: counts, extent and times, no features. Reads its tiles once."""
    stored, tally = _Stored(), Tally()
    for outcome in journal.tiles(row.id):
        stored.add(outcome)
        tally.add_tile(outcome.features)
    return {
        "key": row.id,
        "scene": row.id,
        "name": row.name,
        "status": "done",
        "sha256": row.sha256,
        "bundle_sha256": row.bundle_sha256,
        "tasks": list(ordered_tasks(row.tasks, None)),
        "label": row.label,
        "time": row.facts.get("acquired"),
        "simulated": bool(row.facts.get("simulated")),
        "bbox": row.facts.get("bbox"),
        "accepted_at": row.accepted_at,
        "started_at": row.started_at,
        "counts": {
            "tiles": row.facts.get("tiles", 0),
            "tiles_skipped": stored.skipped.total(),
            "skipped": dict(stored.skipped),
            "answers": tally.answers,
            "answers_not_parsed": tally.not_parsed,
            "answers_cut_short": tally.cut_short,
            "detections": len(merged(stored.detections)),
        },
    }


def stored_detections(found: list[Detection], geometries: list[Json]) -> list[Json]:
    """What a TileOutcome keeps of its detections: their fields, and `geometry`, the box on the ground."""
    fields = Detection.__dataclass_fields__
    return [
        {**{name: getattr(d, name) for name in fields}, "box": list(d.box), "geometry": geometry}
        for d, geometry in zip(found, geometries, strict=True)
    ]


class _Stored:
    """What outcomes add up to."""

    def __init__(self) -> None:
        self.tiles = 0
        self.skipped: Counter[str] = Counter()
        self.detections: list[Detection] = []
        self.geometries: dict[tuple[int, Any], Json] = {}
        """Tile and box of a detection -> its place; boxes of one tile that are equal lie at one place."""

    def add(self, outcome: TileOutcome) -> None:
        self.tiles += 1
        if outcome.status == "skipped":
            self.skipped[outcome.reason] += 1
        for kept in outcome.detections:
            fields = {name: kept[name] for name in Detection.__dataclass_fields__}
            detection = Detection(**{**fields, "box": tuple(kept["box"])})
            self.detections.append(detection)
            self.geometries[detection.tile, detection.box] = kept["geometry"]

"""Scenes in a journal with facts and features as the pipeline writes them."""

from __future__ import annotations

from typing import Any

from journal_scenes import new_scene, scene_message

from fusar_edge.service.journal import Journal, SceneRow, TileOutcome

RING = [[-118.3, 33.8], [-118.1, 33.8], [-118.1, 33.7], [-118.3, 33.7], [-118.3, 33.8]]
FACTS: dict[str, Any] = {
    "width": 1008,
    "height": 504,
    "kind": "db",
    "acquired": "2021-01-05T01:50:12Z",
    "simulated": False,
    "crs": "EPSG:32611",
    "anchor_year": None,
    "table_sha256": None,
    "geometry": {"type": "Polygon", "coordinates": [RING]},
    "bbox": [-118.3, 33.7, -118.1, 33.8],
    "tiles": 2,
}


def answered(index: int) -> TileOutcome:
    """A tile with a caption and one ship."""
    properties = {
        "kind": "answer",
        "tile": index,
        "task": "caption",
        "text": f"tile {index}",
        "parse_status": "parsed",
        "stop_reason": "eos",
        "anchors_used": 0,
        "anchors_missing": {},
        "anchors_years": {},
    }
    feature = {"type": "Feature", "geometry": FACTS["geometry"], "properties": properties}
    left = 600.0 * index
    ship = {"box": [left, 10.0, left + 20.0, 30.0], "label": "ship", "confidence": 0.9, "tile": index, "cut": False}
    return TileOutcome(
        index, "answered", features=[feature], detections=[{**ship, "seen": 1, "geometry": FACTS["geometry"]}]
    )


def done_scene(journal: Journal, number: int = 0, facts: dict[str, Any] | None = None, **changed: object) -> SceneRow:
    """A scene of two answered tiles, with its message in the outbox."""
    row, _ = journal.accept(new_scene(number, **changed), now=1_750_000_000.0 + number)
    journal.start(row.id, {**FACTS, **(facts or {})}, 2)
    for index in range(2):
        journal.tile_done(row.id, answered(index))
    journal.finish(row.id, [scene_message(row.id)], now=1_750_000_100.0)
    done = journal.scene(row.id)
    assert done is not None
    return done

"""Scenes, outcomes and messages that tests of the journal and its sinks write."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.service.journal import Journal, Message, NewScene, TileOutcome

SINKS = ("files", "mqtt")


def new_scene(number: int = 0, **changed: object) -> NewScene:
    fields = {
        "path": Path(f"scenes/{number}.tif"),
        "name": f"{number}.tif",
        "sha256": f"{number:064x}",
        "size_bytes": 1000 + number,
        "mtime_ns": 5,
        "source": "watch",
        "owned": False,
        "tasks": ("caption", "detect"),
        "label": "ship",
        "bundle_sha256": "b" * 64,
    }
    return NewScene(**{**fields, **changed})  # type: ignore[arg-type]


def outcome(index: int, text: str = "a ship") -> TileOutcome:
    """An answered tile with one caption."""
    feature = {"type": "Feature", "geometry": None, "properties": {"task": "caption", "text": text}}
    return TileOutcome(index, "answered", features=[feature], detections=[{"tile": index}], latency_ms={"read": 1.5})


def tile_message(scene_id: str, index: int) -> Message:
    key = f"{scene_id}/{index}"
    return Message(key, "tile", scene_id, index, b'{"key": "%s"}' % key.encode())


def scene_message(scene_id: str) -> Message:
    return Message(scene_id, "scene", scene_id, None, b'{"key": "%s"}' % scene_id.encode())


def failed_message(scene_id: str, attempt: int) -> Message:
    return Message(f"{scene_id}/failed/{attempt}", "failed", scene_id, None, b"{}")


def started(journal: Journal, number: int = 0, tiles: int = 3) -> str:
    """Id of a scene that is running."""
    row, _ = journal.accept(new_scene(number))
    journal.start(row.id, {"width": 10}, tiles)
    return row.id


def finished(journal: Journal, number: int = 0, tiles: int = 2, now: float | None = None) -> str:
    """Id of a scene that is done, with a message for each tile and one for the scene."""
    scene_id = started(journal, number, tiles)
    for index in range(tiles):
        journal.tile_done(scene_id, outcome(index), [tile_message(scene_id, index)])
    journal.finish(scene_id, [scene_message(scene_id)], now)
    return scene_id

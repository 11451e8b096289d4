"""Simulated scenes, interpreted with the default bundle, as the pipeline leaves them in a journal."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from fusar_edge.data.simulator import simulate_scene
from fusar_edge.data.simulator.geotiff import write_geotiff
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.bundle import Bundle, open_bundle
from fusar_edge.runtime.geojson import answer_feature, box_geometry, collection_from_interpretation, common_properties
from fusar_edge.runtime.interpreter import interpret
from fusar_edge.sar.scene import open_scene
from fusar_edge.service.journal import Journal, NewScene, TileOutcome
from fusar_edge.service.pipeline.work import facts_from_scene
from fusar_edge.service.results import stored_detections

TASKS = ("caption", "count", "grid", "detect")
SCENES = (("coast", 11, 14), ("open sea", 5, 6))
"""Kind, seed, ships."""
SIZE = 944
"""Two by two tiles."""


class SimulatedScene:
    """One scene: what the journal is told of it, and the GeoJSON that `interpret` makes of it."""

    def __init__(self, path: Path, bundle: Bundle) -> None:
        result = interpret(bundle, [path], TASKS, values="power", threads=1)
        self.collection: dict[str, Any] = collection_from_interpretation(result)
        scene = result.scenes[0]
        stat = path.stat()
        self.new = NewScene(
            path=path,
            name=path.name,
            sha256=sha256_file(path),
            size_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            source="watch",
            owned=False,
            tasks=TASKS,
            label="ship",
            bundle_sha256=bundle.sha256,
        )
        with open_scene(path, values="power", radiometry=bundle.radiometry) as opened:
            self.facts = facts_from_scene(opened, bundle, None, None)
            hashes = {"bundle_sha256": bundle.sha256, "table_sha256": None, "scene_sha256": self.new.sha256}
            common = common_properties(path.name, scene.acquired, scene.simulated, **hashes)
            records = defaultdict(list)
            for record in scene.records:
                records[record.tile].append(record)
            self.outcomes = [
                TileOutcome(
                    index=tile,
                    status="answered",
                    features=[answer_feature(record, opened, common) for record in own],
                    detections=stored_detections(
                        list(own[-1].detections), [box_geometry(d.box, opened) for d in own[-1].detections]
                    ),
                )
                for tile, own in sorted(records.items())
            ]

    def put(self, journal: Journal, tiles: int | None = None, priority: int = 0, now: float = 1e9, **new: Any) -> str:
        """Accept and start it, answer its first `tiles`, and finish it where that is all of them."""
        import dataclasses

        scene = dataclasses.replace(self.new, priority=priority, **new)
        journal.accept(scene, now=now)
        journal.start(scene.id, self.facts, len(self.outcomes))
        for outcome in self.outcomes[:tiles]:
            journal.tile_done(scene.id, outcome)
        if tiles is None or tiles == len(self.outcomes):
            journal.finish(scene.id, [])
        return scene.id


def simulated_scenes(folder: Path) -> list[SimulatedScene]:
    bundle = open_bundle("default")
    scenes = []
    for kind, seed, ships in SCENES:
        path = folder / f"scene-{seed}.tif"
        write_geotiff(path, simulate_scene(seed, SIZE, 3.0, kind=kind, count=ships))
        scenes.append(SimulatedScene(path, bundle))
    return scenes

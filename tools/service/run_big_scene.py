"""The service's pipeline on one large scene with known ships: time, peak memory, recall of triage, with and without it.

    python tools/service/big_scene.py big.tif
    python tools/service/run_big_scene.py big.tif --triage cfar [--task count ...] [--json R.json]

One run a process, so that the peak memory is its own. A ship tile is one that holds at least half of a ship's box.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.service.journal import Journal, NewScene
from fusar_edge.service.pipeline import Pipeline
from fusar_edge.service.pipeline.work import windows_from_facts
from fusar_edge.service.settings import ModelSettings, TriageSettings


def holds(window: TileWindow, box: list[float]) -> bool:
    """At least half of the box."""
    width = min(box[2], window.col_off + window.width) - max(box[0], window.col_off)
    height = min(box[3], window.row_off + window.height) - max(box[1], window.row_off)
    return width > 0 and height > 0 and width * height >= 0.5 * (box[2] - box[0]) * (box[3] - box[1])


def run(path: Path, triage: str, tasks: tuple[str, ...], folder: Path) -> dict[str, Any]:
    bundle = open_bundle("default")
    journal = Journal.open(folder / "journal.sqlite", [])
    state = path.stat()
    scene = NewScene(
        path=path,
        name=path.name,
        sha256=sha256_file(path),
        size_bytes=state.st_size,
        mtime_ns=state.st_mtime_ns,
        source="watch",
        owned=False,
        tasks=tasks,
        label="ship",
        bundle_sha256=bundle.sha256,
    )
    row, _ = journal.accept(scene)
    settings = msgspec.convert({"mode": triage}, TriageSettings)
    pipeline = Pipeline(bundle, journal, ModelSettings(tasks=tasks), settings)
    start = time.perf_counter()
    pipeline.start()
    while (status := journal.scene(row.id)) is not None and status.status not in ("done", "failed"):
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    pipeline.stop()
    assert status is not None
    if status.status == "failed":
        raise SystemExit(status.reason)
    outcomes = {outcome.index: outcome.status for outcome in journal.tiles(row.id)}
    windows = windows_from_facts(status.facts)
    boxes = json.loads(path.with_suffix(".json").read_text())["boxes_px"]
    ship_tiles = {index for index, window in enumerate(windows) if any(holds(window, box) for box in boxes)}
    kept = {index for index, outcome in outcomes.items() if outcome == "answered"}
    seen = [any(holds(windows[index], box) for index in kept) for box in boxes]
    journal.close()
    return {
        "simulated": True,
        "triage": triage,
        "tasks": list(tasks),
        "seconds": round(seconds, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "tiles": len(windows),
        "answered": len(kept),
        "ship_tiles": len(ship_tiles),
        "ship_tiles_answered": len(ship_tiles & kept),
        "recall": round(len(ship_tiles & kept) / len(ship_tiles), 4),
        "ships": len(boxes),
        "ships_in_answered_tiles": sum(seen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="made by big_scene.py, its JSON beside it")
    parser.add_argument("--triage", choices=["cfar", "nodata", "off"], default="cfar")
    parser.add_argument("--task", action="append", choices=["caption", "count", "grid", "detect"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusar-edge-big-") as folder:
        tasks = tuple(given.task or ("caption", "count", "detect"))
        result = run(given.scene.absolute(), given.triage, tasks, Path(folder))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""A folder of simulated scenes: GeoTIFFs, per-image anchors and the triplet manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.data.simulator.geotiff import write_geotiff
from fusar_edge.data.simulator.scene import SimulatedScene, simulate_scene
from fusar_edge.data.triplet_rows import Row, rows_from_truth, write_rows
from fusar_edge.errors import DataError
from fusar_edge.manifest import Manifest, folder_hashes, output_folder, package_versions, write_manifest

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def scene_seed(seed: int, index: int) -> int:
    """Seed of the scene `index` of a data set: neighbouring data sets share no scene."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def scene_bounds(scene: SimulatedScene) -> list[float]:
    """[lon_min, lat_min, lon_max, lat_max] in degrees that encloses the scene."""
    from fusar_edge.anchors.zones import lonlat_bounds, zone_from_epsg

    a, _, west, _, e, north = scene.transform
    height, width = scene.power.shape
    zone = zone_from_epsg(scene.epsg)
    assert zone is not None  # the simulator draws UTM zones only
    return lonlat_bounds(zone, west, north + e * height, west + a * width, north)


def _write_scene(out: Path, name: str, id: str, scene: SimulatedScene, anchors: bool) -> list[Row]:
    """One scene's GeoTIFF and, where it has any, its anchors; its rows."""
    image = f"scenes/{name}.tif"
    write_geotiff(out / image, scene)
    aef = None
    if anchors and len(scene.anchors.features):
        from fusar_edge.anchors.per_image import write_anchor_file

        aef = f"anchors/{name}.npz"
        write_anchor_file(out / aef, scene.anchors.features, scene.anchors.positions)
    bounds = [round(v, 7) for v in scene_bounds(scene)]
    return rows_from_truth(scene.truth, image, aef, id, crs=f"EPSG:{scene.epsg}", bounds=bounds)


def _figures(kinds: list[str], counts: list[int], with_anchors: int) -> dict[str, Any]:
    return {
        "scenes": len(kinds),
        "ships": sum(counts),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "ships_per_scene": {str(n): counts.count(n) for n in sorted(set(counts))},
        "scenes_with_anchors": with_anchors,
    }


def write_dataset(
    out: Path,
    scenes: int,
    seed: int,
    *,
    size: int = 504,
    anchors: bool = True,
    nodes: int = 9,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Simulate `scenes` scenes into the new folder `out`; returns its manifest.

    `scenes/sim-SEED-00000.tif` (float32 linear power, UTM), `anchors/*.npz` (none for open sea), `triplets.jsonl` and
    `manifest.json`. Nothing appears at `out` before all is written. DataError: an argument out of range.
    """
    if scenes < 1 or seed < 0 or not 64 <= size <= 8192 or nodes < 1:
        raise DataError(
            f"scenes {scenes}, seed {seed}, size {size}, nodes {nodes}: give at least one scene and node, "
            "a seed of 0 or more, a size of 64 to 8192 pixels"
        )
    rows: list[Row] = []
    kinds, counts, with_anchors = [], [], 0
    with output_folder(Path(out), force=force) as work:
        (work / "scenes").mkdir()
        (work / "anchors").mkdir()
        for index in range(scenes):
            scene = simulate_scene(scene_seed(seed, index), size, nodes=nodes)
            added = _write_scene(work, f"sim-{seed}-{index:05d}", f"simulated-{seed}-{index:05d}", scene, anchors)
            rows += added
            kinds.append(scene.kind)
            counts.append(len(scene.truth.targets))
            with_anchors += "aef" in added[0]
            if progress:
                progress(index + 1, scenes)
        write_rows(work / "triplets.jsonl", rows)
        manifest = Manifest(
            stage="simulate",
            files=folder_hashes(work),
            figures=_figures(kinds, counts, with_anchors),
            settings={
                "simulated": True,
                "note": "simulated SAR scenes and simulated AlphaEarth-like vectors; nothing here was measured",
                "seed": seed,
                "size": size,
                "nodes": nodes,
                "values": "power",
            },
            packages=package_versions("numpy", "rasterio"),
        )
        write_manifest(work, manifest)
    return manifest

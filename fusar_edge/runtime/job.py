"""Interpret scenes into files: what `fusar-edge interpret` does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusar_edge.data.truth import Box
from fusar_edge.errors import InputError
from fusar_edge.manifest import check_output, output_file
from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.runtime.geojson import collection_bytes, collection_from_interpretation
from fusar_edge.runtime.interpreter import Interpretation, Progress, SceneResult, interpret
from fusar_edge.sar.scene import open_scene


def interpret_to_files(
    bundle: str | Path,
    scenes: Sequence[str | Path],
    tasks: Sequence[str] = ("caption",),
    *,
    out: Path,
    overlay: Path | None = None,
    anchors: Path | None = None,
    year: int | None = None,
    label: str = "ship",
    boxes: Sequence[Box] | None = None,
    overlap_px: int | None = None,
    band: int | None = None,
    values: str = "auto",
    threads: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Interpretation, dict[str, Any]]:
    """Write `out` (GeoJSON) and, where asked, `overlay` (PNG; with several scenes one each, NAME-1.png, ...).

    Returns the interpretation and the summary that the command prints as its JSON line. Outputs that exist are
    refused before any work; on any error neither file appears.
    """
    pictures = _overlay_paths(overlay, len(scenes))
    if len({Path(p).absolute() for p in (out, *pictures)}) != 1 + len(pictures):
        raise InputError(f"--out and --overlay are both {out}: give two files")
    for path in (out, *pictures):
        check_output(path, force)
    opened = open_bundle(bundle)
    result = interpret(
        opened,
        scenes,
        tasks,
        anchors=_open_table(anchors),
        year=year,
        label=label,
        boxes=boxes,
        overlap_px=overlap_px,
        band=band,
        values=values,
        threads=threads,
        progress=progress,
    )
    collection = collection_from_interpretation(result)
    with contextlib.ExitStack() as stack:
        stack.enter_context(output_file(out, force=force)).write_bytes(collection_bytes(collection))
        for path, scene in zip(pictures, result.scenes, strict=False):
            work = stack.enter_context(output_file(path, force=force))
            _write_overlay(work, scene, result, band, values)
    summary = {
        "out": str(out),
        "overlays": [str(path) for path in pictures],
        "bundle": opened.sha256,
        "simulated": collection["simulated"],
        **collection["counts"],
        "anchors": collection["anchors"],
    }
    return result, summary


def _write_overlay(path: Path, scene: SceneResult, result: Interpretation, band: int | None, values: str) -> None:
    from fusar_edge.runtime.overlay import overlay_from_result

    with open_scene(scene.path, band=band, values=values, radiometry=result.bundle.radiometry) as opened:
        overlay_from_result(opened, scene, result).save(path, format="PNG")


def _overlay_paths(overlay: Path | None, scenes: int) -> list[Path]:
    if overlay is None:
        return []
    if overlay.suffix.lower() != ".png":
        raise InputError(f"--overlay {overlay}: give a name that ends in .png")
    if scenes == 1:
        return [overlay]
    return [overlay.with_name(f"{overlay.stem}-{number}{overlay.suffix}") for number in range(1, scenes + 1)]


def _open_table(path: Path | None) -> Any:
    if path is None:
        return None
    from fusar_edge.anchors.table import AnchorTable

    return AnchorTable.open(path)

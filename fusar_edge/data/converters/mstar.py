"""MSTAR vehicle chips -> triplet rows: a folder of class folders, the class being the folder's name.

A chip has one vehicle in its middle and no box is published, so none is made up: each row asks for the class of the
whole frame. Chips of one vehicle at neighbouring azimuths are alike, and a split of one depression angle by file name
does not part them; the usual test set is the other depression angle (15 degrees).
"""

from __future__ import annotations

from pathlib import Path

from fusar_edge.data.converters import Progress
from fusar_edge.data.converters.image import copy_image, image_paths, thumbnail_from_file
from fusar_edge.data.converters.split import in_val
from fusar_edge.data.tasks import classify_prompt
from fusar_edge.data.triplet_rows import manifest_row, write_rows
from fusar_edge.data.truth import COORDINATE_SIZE
from fusar_edge.errors import DataError
from fusar_edge.manifest import Manifest

SOURCE = "MSTAR public targets, Sensor Data Management System, U.S. Air Force Research Laboratory"
LICENCE = "CC0-1.0 (public release by the U.S. Air Force)"
FRAME = (0.0, 0.0, float(COORDINATE_SIZE), float(COORDINATE_SIZE))


def _chips(src: Path) -> list[tuple[str, Path]]:
    """(class, chip), by class and name."""
    folders = sorted(p for p in src.iterdir() if p.is_dir())
    chips = [(folder.name, path) for folder in folders for path in image_paths(folder)]
    if not chips:
        raise DataError(f"{src} holds no class folder with image chips: give the folder of one depression angle")
    for folder in folders:
        if not image_paths(folder):
            raise DataError(f"{folder} holds no image chip: each folder in {src} is a class; remove it")
    return chips


def write_converted(src: Path, out: Path, progress: Progress) -> Manifest:
    """Fill `out` (see `convert`): every chip is decoded once, so a broken one is found here and not in training."""
    chips = _chips(src)
    rows: dict[str, list[dict[str, object]]] = {"train": [], "val": []}
    for done, (label, path) in enumerate(chips, 1):
        thumbnail_from_file(path)
        name = f"{label}/{path.name}"
        copy_image(path, out / "images" / name)
        row_id = f"{label}/{path.stem}/classify-1"
        row = manifest_row("classify", classify_prompt(FRAME), label, f"images/{name}", None, row_id)
        rows["val" if in_val(name) else "train"].append(row)
        progress(done, len(chips))
    for part, part_rows in rows.items():
        write_rows(out / f"{part}.jsonl", part_rows)
    return Manifest(
        stage="convert",
        figures={"images": len(chips), **{part: len(part_rows) for part, part_rows in rows.items()}},
        settings={
            "kind": "mstar",
            "source": SOURCE,
            "licence": LICENCE,
            "split": "one file name in five, by hash",
            "classes": sorted({label for label, _ in chips}),
        },
    )

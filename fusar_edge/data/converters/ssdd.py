"""SSDD ship chips (Zhang et al., Remote Sensing 2021, doi:10.3390/rs13183690) -> triplet rows.

Two layouts are read: `images/` + `annotations/`, and the official `JPEGImages/` + `Annotations/`. The image is
stretched to a square by whoever reads it, so x and y of a box are scaled apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusar_edge.data.converters import Progress
from fusar_edge.data.converters.image import copy_image, image_paths, thumbnail_from_file
from fusar_edge.data.converters.split import BLOCK, NEAR_DUPLICATE, train_and_val
from fusar_edge.data.converters.voc import VocImage, read_voc
from fusar_edge.data.triplet_rows import rows_from_truth, write_rows
from fusar_edge.data.truth import COORDINATE_SIZE, Target, Truth
from fusar_edge.errors import DataError
from fusar_edge.manifest import Manifest

LABEL = "ship"
LAYOUTS = (("images", "annotations"), ("JPEGImages", "Annotations"))
SOURCE = "SSDD: T. Zhang et al., SAR Ship Detection Dataset, Remote Sensing 13 (2021) 3690"
LICENCE = "Apache-2.0, as stated in the repository of SSDD's authors"


def _layout(src: Path) -> tuple[Path, Path]:
    for chips, boxes in LAYOUTS:
        if (src / chips).is_dir() and (src / boxes).is_dir():
            return src / chips, src / boxes
    pairs = " or ".join(f"{chips}/ and {boxes}/" for chips, boxes in LAYOUTS)
    raise DataError(f"{src} is not an SSDD folder: it needs {pairs}")


def _pairs(src: Path) -> list[tuple[Path, Path]]:
    """Each image with its annotation, by name; neither may lack the other."""
    images, annotations = _layout(src)
    by_stem = {path.stem: path for path in image_paths(images)}
    xml_stems = {path.stem for path in annotations.glob("*.xml")}
    if not by_stem and not xml_stems:
        raise DataError(f"{images} holds no image and {annotations} no annotation: the folder is empty")
    for stem in sorted(xml_stems - by_stem.keys()):
        raise DataError(f"{annotations / stem}.xml has no image in {images}: add it, or remove the annotation")
    for stem in sorted(by_stem.keys() - xml_stems):
        raise DataError(f"{by_stem[stem]} has no annotation in {annotations}: add it, or remove the image")
    return [(by_stem[stem], annotations / f"{stem}.xml") for stem in sorted(by_stem)]


def truth_from_voc(voc: VocImage, path: Path) -> Truth:
    """Targets in 504-pixel coordinates. `path` is named in errors."""
    width, height = voc.size
    targets = []
    for name, (x1, y1, x2, y2) in voc.objects:
        if name.lower() != LABEL:
            raise DataError(f"{path}: object {name!r}: SSDD annotates {LABEL!r} only")
        sx, sy = COORDINATE_SIZE / width, COORDINATE_SIZE / height
        targets.append(Target((x1 * sx, y1 * sy, x2 * sx, y2 * sy), LABEL))
    return Truth(targets=tuple(targets), label=LABEL)


def write_converted(src: Path, out: Path, progress: Progress) -> Manifest:
    """Fill `out` (see `convert`): every chip is decoded once, so a broken one is found here and not in training."""
    pairs = _pairs(src)
    truths, thumbnails = [], []
    for done, (image, annotation) in enumerate(pairs, 1):
        voc = read_voc(annotation)
        size, thumbnail = thumbnail_from_file(image)
        if size != voc.size:
            raise DataError(f"{annotation} says {voc.size} pixels but {image} has {size}: they do not belong together")
        truths.append(truth_from_voc(voc, annotation))
        thumbnails.append(thumbnail)
        copy_image(image, out / "images" / image.name)
        progress(done, len(pairs))
    val, found = train_and_val([image.stem for image, _ in pairs], np.stack(thumbnails))
    for name, part in (("train", ~val), ("val", val)):
        chosen = [(image, truth) for (image, _), truth, use in zip(pairs, truths, part, strict=True) if use]
        rows = [
            row for image, truth in chosen for row in rows_from_truth(truth, f"images/{image.name}", None, image.stem)
        ]
        write_rows(out / f"{name}.jsonl", rows)
    split = f"blocks of {BLOCK} numbers by hash; near-duplicates (correlation >= {NEAR_DUPLICATE}) move to train"
    return Manifest(
        stage="convert",
        figures={"images": len(pairs), "train": int((~val).sum()), "val": int(val.sum()), **found},
        settings={"kind": "ssdd", "source": SOURCE, "licence": LICENCE, "split": split},
    )

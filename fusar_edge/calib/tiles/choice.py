"""The choice of the calibration set: tiles, prompts and anchors together."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fusar_edge.calib.tiles.land_cover import Floats, image_statistics, k_means, mean_vector, scaled
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.errors import DataError
from fusar_edge.sar.image import Grey, grey_from_file
from fusar_edge.sar.radiometry import Radiometry
from fusar_edge.specs import SetSpec

CANDIDATES = 16
"""Images of a stratum that are decoded at most, as a multiple of the tiles and held-out images asked for."""

Progress = Callable[[int, int], None]
Modality = Literal["sar", "sar+anchors"]


@dataclass(frozen=True)
class ChosenTile:
    """One image and the one question of it that is asked."""

    triplet: Triplet
    manifest: Path
    """The triplet manifest that the question is from."""
    modality: Modality
    cluster: int
    """Land cover, numbered within the stratum."""
    pixels_sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """Two parts without a common image."""

    tiles: list[ChosenTile]
    """The ranges are taken from these."""
    held_out: list[ChosenTile]
    """INT8 is compared with FP32 on these."""


@dataclass
class _Image:
    asked: list[tuple[Triplet, Path]]
    """Every question of it, with its manifest."""
    modality: Modality
    pixels: str
    order: str
    """Its place in every draw: a hash of the seed and its pixels."""
    features: Floats
    """[64] mean AlphaEarth vector of unit length, or [5] image statistics."""

    cluster: int = 0

    def tasks(self) -> set[str]:
        return {str(triplet.task) for triplet, _ in self.asked}


# The choice ---------------------------------------------------------------------------------------------------------


def choose(
    manifests: Sequence[Path], spec: SetSpec, radiometry: Radiometry, progress: Progress | None = None
) -> CalibrationSet:
    """Draw the set that `spec` asks for; the same data and seed give the same set, in any folder and order of records.

    Strata (a manifest's images with anchors, and those without) take turns, and so do the land-cover clusters within
    one; the tasks take turns over each part. Images with equal decoded pixels are one image, with the questions of all
    its copies in a stratum; where copies are in several, it is an image with anchors if any copy is.
    With fewer images than asked for, a fifth (at least one) is held out and the rest gives the ranges.

    Of a stratum at most CANDIDATES x (tiles + held_out) images, by a hash of seed and path relative to the manifest,
    are decoded and clustered: an archive of 100,000 is not read for 80 tiles. `progress(done, total)` counts them.

    Raises DataError (SceneError, AnchorError) for what cannot be read, and for fewer than two images.
    """
    strata = _strata(manifests, spec, radiometry, progress)
    distinct = sum(len(stratum) for stratum in strata)
    if distinct < 2:
        raise DataError(
            f"{', '.join(map(str, manifests)) or 'no manifest'}: distinct images: {distinct}; calibration needs 2 or "
            "more, one of them to compare on (copies count once): give more --data"
        )
    enough = distinct >= spec.tiles + spec.held_out
    held = spec.held_out if enough else min(spec.held_out, max(1, distinct // 5))
    count = min(spec.tiles, distinct - held) + held
    tiles: list[_Image] = []
    held_out: list[_Image] = []
    for stratum, quota in zip(strata, turns([len(s) for s in strata], count, held), strict=True):
        clusters = _clusters(stratum, spec)
        for members, (drawn, out) in zip(clusters, turns([len(c) for c in clusters], *quota), strict=True):
            held_out += members[:out]
            tiles += members[out:drawn]
    return CalibrationSet(_asked(tiles, spec.seed), _asked(held_out, spec.seed))


def turns(sizes: Sequence[int], count: int, held: int) -> list[tuple[int, int]]:
    """(drawn, of these held out) of each group, where groups of `sizes` give one in turn until `count` are drawn.

    `held` <= `count` <= the sum of `sizes`. Held out is in proportion to what is drawn, by largest remainder: of groups
    that are not exhausted, both the held-out and the other numbers are equal within one.
    """
    taken = Counter(group for _, group in sorted((k, g) for g, size in enumerate(sizes) for k in range(size))[:count])
    drawn = [taken[group] for group in range(len(sizes))]
    out = [n * held // max(count, 1) for n in drawn]
    by_remainder = sorted(range(len(sizes)), key=lambda g: -(drawn[g] * held % max(count, 1)))
    for group in by_remainder[: held - sum(out)]:
        out[group] += 1
    return list(zip(drawn, out, strict=True))


def _asked(images: list[_Image], seed: int) -> list[ChosenTile]:
    """One question of each. Images with the fewest tasks choose first, each the task that was asked least so far."""
    counts: Counter[str] = Counter()
    chosen: dict[str, ChosenTile] = {}
    for image in sorted(images, key=lambda i: (len(i.tasks()), i.order)):
        task = min(image.tasks(), key=lambda name: (counts[name], _draw(seed, name)))
        counts[task] += 1
        triplet, manifest = min(
            (pair for pair in image.asked if str(pair[0].task) == task),
            key=lambda pair: _draw(
                seed, image.pixels, pair[0].question, pair[0].answer, relative_path(pair[0].image, pair[1])
            ),
        )
        chosen[image.order] = ChosenTile(triplet, manifest, image.modality, image.cluster, image.pixels)
    return [chosen[order] for order in sorted(chosen)]


def _draw(seed: int, *parts: str) -> str:
    """A seeded order that does not depend on where the data lies or how it is sorted."""
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).hexdigest()


def relative_path(path: Path, manifest: Path) -> str:
    """POSIX path from the folder of a manifest."""
    return Path(os.path.relpath(path, manifest.parent)).as_posix()


# The images ---------------------------------------------------------------------------------------------------------


def _strata(
    manifests: Sequence[Path], spec: SetSpec, radiometry: Radiometry, progress: Progress | None
) -> list[list[_Image]]:
    """Distinct images of each stratum in drawing order; strata with anchors first: these tiles also run without."""
    candidates = [group for manifest in dict.fromkeys(manifests) for group in _candidates(Path(manifest), spec)]
    total, done = sum(map(len, candidates)), 0
    strata: list[list[_Image]] = []
    for group in candidates:
        strata.append([])
        for asked in group:
            strata[-1].append(_read(asked, radiometry, spec.seed))
            done += 1
            if progress:
                progress(done, total)
        strata[-1].sort(key=lambda image: image.order)
    strata.sort(key=lambda images: (images[0].modality == "sar", [image.order for image in images]))
    kept: dict[str, _Image] = {}
    for image in (image for stratum in strata for image in stratum):
        first = kept.setdefault(image.pixels, image)
        if first is not image and first.modality == image.modality:
            first.asked += image.asked
    return [[image for image in stratum if kept[image.pixels] is image] for stratum in strata]


def _candidates(manifest: Path, spec: SetSpec) -> Iterator[list[list[tuple[Triplet, Path]]]]:
    """The questions of each image to decode, once for the images with anchors and once for those without."""
    groups: dict[bool, list[list[tuple[Triplet, Path]]]] = {True: [], False: []}
    for triplets in triplets_by_image(read_triplets(manifest)).values():
        with_anchors = [t for t in triplets if t.aef is not None]
        groups[bool(with_anchors)].append([(t, manifest) for t in with_anchors or triplets])
    cap = CANDIDATES * (spec.tiles + spec.held_out)
    for group in filter(None, groups.values()):
        yield sorted(group, key=lambda asked: _draw(spec.seed, relative_path(asked[0][0].image, manifest)))[:cap]


def _read(asked: list[tuple[Triplet, Path]], radiometry: Radiometry, seed: int) -> _Image:
    grey = grey_from_file(asked[0][0].image, radiometry)
    pixels = pixels_sha256(grey)
    anchor_files = [t.aef for t, _ in asked if t.aef is not None]
    features = mean_vector(min(anchor_files)) if anchor_files else image_statistics(grey)
    return _Image(asked, "sar+anchors" if anchor_files else "sar", pixels, _draw(seed, pixels), features)


def pixels_sha256(grey: Grey) -> str:
    """Hash of grey float32 [H, W] as decoded: a lossless copy in another format or encoding has the same.

    Of float products it depends on the radiometry.
    """
    return hashlib.sha256(f"{grey.shape}".encode() + grey.astype("<f4").tobytes()).hexdigest()


def _clusters(stratum: list[_Image], spec: SetSpec) -> list[list[_Image]]:
    if not stratum:
        return []
    points = np.stack([image.features for image in stratum])
    if stratum[0].modality == "sar":
        points = scaled(points)
    random = np.random.default_rng(int(_draw(spec.seed, "clusters")[:16], 16))
    labels = k_means(points, spec.clusters, random)
    groups: list[list[_Image]] = [[] for _ in range(spec.clusters)]
    for image, label in zip(stratum, labels, strict=True):
        image.cluster = int(label)
        groups[label].append(image)
    return groups

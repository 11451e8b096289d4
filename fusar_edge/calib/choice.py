"""The calibration set: tiles, prompts and anchors chosen together, listed, and kept apart from evaluation data."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.per_image import read_anchor_file
from fusar_edge.data.triplet_rows import Row, write_rows
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image
from fusar_edge.errors import DataError
from fusar_edge.manifest import FILENAME, read_manifest, sha256_file
from fusar_edge.sar.image import Grey, grey_from_file, resized
from fusar_edge.sar.radiometry import Radiometry
from fusar_edge.specs import SetSpec

CANDIDATES = 16
"""Images of a stratum that are decoded at most, as a multiple of the tiles and held-out images asked for."""
VIEW = 128
"""Side in pixels at which image statistics are taken: finer than land cover, coarse enough to average speckle."""
NOT_STATED = "not stated"
SIMULATED = "none needed: simulated data"

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float64]
Modality = Literal["sar", "sar+anchors"]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


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
                seed, image.pixels, pair[0].question, pair[0].answer, _relative(pair[0].image, pair[1])
            ),
        )
        chosen[image.order] = ChosenTile(triplet, manifest, image.modality, image.cluster, image.pixels)
    return [chosen[order] for order in sorted(chosen)]


def _draw(seed: int, *parts: str) -> str:
    """A seeded order that does not depend on where the data lies or how it is sorted."""
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).hexdigest()


def _relative(path: Path, manifest: Path) -> str:
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
        yield sorted(group, key=lambda asked: _draw(spec.seed, _relative(asked[0][0].image, manifest)))[:cap]


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


# Land cover ---------------------------------------------------------------------------------------------------------


def mean_vector(path: Path) -> Floats:
    """[64]: direction of the mean AlphaEarth vector of an anchor file; zeros where all its vectors are.

    Masked places are not in the file, and it is refused (AnchorError) with NaN in it.
    """
    mean = read_anchor_file(path).features.astype(np.float64).mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def image_statistics(grey: Grey) -> Floats:
    """[5] of grey [H, W]: log level, log contrast, log share of bright pixels, edges, share of coarse structure."""
    view = resized(grey, VIEW).astype(np.float64)
    level, spread = view.mean() + 1 / 255, view.std() + 1 / 255
    bright = (view > 4 * (np.median(view) + 1 / 255)).mean()
    edges = np.hypot(np.diff(view, axis=0)[:, 1:], np.diff(view, axis=1)[1:]).mean()
    coarse = view.reshape(8, VIEW // 8, 8, VIEW // 8).mean(axis=(1, 3)).std()
    return np.array([np.log(level), np.log(spread / level), np.log(bright + 1e-3), edges / spread, coarse / spread])


def _clusters(stratum: list[_Image], spec: SetSpec) -> list[list[_Image]]:
    if not stratum:
        return []
    points = np.stack([image.features for image in stratum])
    if stratum[0].modality == "sar":  # of unlike units: median 0, quartiles 1 apart, and no outlier takes a cluster
        low, middle, high = np.percentile(points, (25, 50, 75), axis=0)
        points = np.clip((points - middle) / np.maximum(high - low, 1e-3), -3, 3)
    random = np.random.default_rng(int(_draw(spec.seed, "clusters")[:16], 16))
    labels = k_means(points, spec.clusters, random)
    groups: list[list[_Image]] = [[] for _ in range(spec.clusters)]
    for image, label in zip(stratum, labels, strict=True):
        image.cluster = int(label)
        groups[label].append(image)
    return groups


def k_means(points: Floats, count: int, random: np.random.Generator, iterations: int = 50) -> npt.NDArray[np.int64]:
    """Labels [N] of points [N, D]: Lloyd's iterations from k-means++ seeds (Arthur & Vassilvitskii, SODA 2007).

    Fewer than `count` labels where there are fewer distinct points. SciPy's is no dependency of the workshop.
    """
    centres = points[[random.integers(len(points))]]
    while len(centres) < count and (gaps := _squares(points, centres).min(axis=1)).any():
        centres = np.vstack([centres, points[random.choice(len(points), p=gaps / gaps.sum())]])
    labels = _squares(points, centres).argmin(axis=1)
    for _ in range(iterations):
        used = [label for label in range(len(centres)) if (labels == label).any()]
        centres[used] = [points[labels == label].mean(axis=0) for label in used]
        before, labels = labels, _squares(points, centres).argmin(axis=1)
        if np.array_equal(before, labels):
            break
    return labels


def _squares(points: Floats, centres: Floats) -> Floats:
    return np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


# The listing --------------------------------------------------------------------------------------------------------


class _ListedTile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    part: Literal["ranges", "held_out"]
    image: str
    sha256: Sha256
    pixels_sha256: Sha256
    modality: Modality
    aef: str | None
    aef_sha256: Sha256 | None
    task: str | None
    question: str
    cluster: int
    licence: str
    source: str


def listing(chosen: CalibrationSet) -> list[Row]:
    """Every tile with its hashes, licence and source, ready for JSON; the same in any folder.

    `image` and `aef` are paths from the folder that the manifest's folder is in. `licence` and `source` are what that
    folder's manifest.json says; DataError where it was changed.
    """
    parts = {"ranges": chosen.tiles, "held_out": chosen.held_out}
    origins = {tile.manifest: _origin(tile.manifest) for tiles in parts.values() for tile in tiles}
    return [_row(part, tile) | origins[tile.manifest] for part, tiles in parts.items() for tile in tiles]


def _row(part: str, tile: ChosenTile) -> Row:
    image, aef = tile.triplet.image, tile.triplet.aef
    return {
        "part": part,
        "image": _listed(image, tile.manifest),
        "sha256": sha256_file(image),
        "pixels_sha256": tile.pixels_sha256,
        "modality": tile.modality,
        "aef": None if aef is None else _listed(aef, tile.manifest),
        "aef_sha256": None if aef is None else sha256_file(aef),
        "task": tile.triplet.task,
        "question": tile.triplet.question,
        "cluster": tile.cluster,
    }


def _listed(path: Path, manifest: Path) -> str:
    folder = os.path.basename(os.path.abspath(manifest.parent))
    return posixpath.normpath(f"{folder}/{_relative(path, manifest)}")


def _origin(manifest: Path) -> dict[str, str]:
    """Licence and source of the data set that a triplet manifest is of."""
    file = manifest.parent / FILENAME
    if manifest.name == FILENAME or not file.is_file():  # published data may give its own list that name
        return {"licence": NOT_STATED, "source": NOT_STATED}
    settings = read_manifest(manifest.parent, DataError).settings
    if settings.get("simulated"):
        settings = {"licence": SIMULATED, "source": settings.get("note", NOT_STATED)} | settings
    return {key: str(settings.get(key, NOT_STATED)) for key in ("licence", "source")}


def write_listing(path: Path, rows: Sequence[Row], *, force: bool = False) -> None:
    """JSONL, a tile a line. OutputExistsError unless `force`."""
    write_rows(path, rows, force=force)


def read_listing(path: Path) -> list[Row]:
    """What `write_listing` wrote; DataError names the line that is none."""
    advice = "a listing is written by `calibrate`, one JSON object a line: copy it again, or calibrate again"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}); {advice}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(msgspec.to_builtins(msgspec.json.decode(line, type=_ListedTile)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise DataError(f"{path}:{number}: {problem}; {advice}") from None
    if not rows:
        raise DataError(f"{path}: lists no tile; {advice}")
    return rows


def check_disjoint(
    listing_rows: Sequence[Mapping[str, Any]],
    data: Path,
    radiometry: Radiometry,
    images: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Raise DataError where images of the evaluation manifest `data` are in the listing, by bytes or decoded pixels.

    `images`: only the first so many with a known task, as `eval` takes them. Each image is read once, and decoded where
    its bytes are not listed. Another crop or a lossy copy of a tile is not found.
    """
    files, pixels = ({row[key] for row in listing_rows} for key in ("sha256", "pixels_sha256"))
    triplets = read_triplets(data)
    seen = list(triplets_by_image(triplets if images is None else [t for t in triplets if t.task]))[:images]
    shared = []
    for done, image in enumerate(seen, 1):
        if sha256_file(image) in files or pixels_sha256(grey_from_file(image, radiometry)) in pixels:
            shared.append(image)
        if progress:
            progress(done, len(seen))
    if shared:
        names = ", ".join(map(str, shared[:3])) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{data}: {len(shared)} of {len(seen)} images are also calibration tiles (ranges or held out): {names}. "
            "INT8 would be judged on what it was tuned on: evaluate on a manifest without them, or calibrate on data "
            "without them"
        )

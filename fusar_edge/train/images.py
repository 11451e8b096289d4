"""Training images: decoded once, kept as uint8, changed on the fly together with their boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fusar_edge.data.tasks import targets_sentence
from fusar_edge.data.triplets import Triplet, read_triplets, triplets_by_image, truth_of_image
from fusar_edge.data.truth import COORDINATE_SIZE, Target, Truth, clipped

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Anchors:
    """features [S, 64], positions [S, 2] (y, x)."""

    features: NDArray[np.float32]
    positions: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingImage:
    """One image with everything that is asked of it."""

    pixels: NDArray[np.uint8]
    """[cache, cache]"""
    triplets: tuple[Triplet, ...]
    truth: Truth | None
    """From the detection record; None: no geometric augmentation of questions, no dense targets."""
    anchors: Anchors | None = None
    written_captions: tuple[Triplet, ...] = field(default=())
    """Captions that say more than the boxes do; asked of the unturned image only."""


def load_images(
    manifest: Path, cache_px: int, cache_folder: Path, progress: Callable[[int, int], None] | None = None
) -> list[TrainingImage]:
    """Every image of a manifest, decoded once: the pixels are kept in `cache_folder` as one `.npy`."""
    groups = triplets_by_image(read_triplets(manifest))
    pixels = _cached_pixels(list(groups), cache_px, cache_folder, progress)
    images = []
    for index, triplets in enumerate(groups.values()):
        truth = truth_of_image(triplets)
        derived = targets_sentence(truth) if truth else None
        captions = tuple(t for t in triplets if t.task == "caption" and t.answer != derived)
        aef = triplets[0].aef
        images.append(TrainingImage(pixels[index], tuple(triplets), truth, _anchors(aef) if aef else None, captions))
    return images


def _anchors(path: Path) -> Anchors:
    from fusar_edge.anchors.per_image import read_anchor_file

    anchors = read_anchor_file(path)
    return Anchors(anchors.features, anchors.positions)


def _cached_pixels(
    paths: list[Path], size: int, folder: Path, progress: Callable[[int, int], None] | None
) -> NDArray[np.uint8]:
    from fusar_edge.sar.image import grey_from_file, resized

    stamp = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    cache = folder / f"pixels-{size}-{hashlib.sha256(repr(stamp).encode()).hexdigest()[:16]}.npy"
    if cache.is_file():
        return np.load(cache, mmap_mode="r")
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.empty((len(paths), size, size), np.uint8)
    for index, path in enumerate(paths):
        pixels[index] = np.rint(resized(grey_from_file(path), size) * 255)
        if progress:
            progress(index + 1, len(paths))
    work = cache.with_name(f".{cache.name}")
    np.save(work, pixels)
    work.replace(cache)
    return pixels


# Changes of view ----------------------------------------------------------------------------------------------------


SLIVER = 0.02
"""A target of which a view shows a smaller share of its area is not in it."""


@dataclass(frozen=True)
class View:
    """Crop (x0, y0, side, in 0..1), then mirror, then quarter turns counter-clockwise."""

    x0: float = 0.0
    y0: float = 0.0
    side: float = 1.0
    mirror: bool = False
    turns: int = 0

    def points(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions [..., 2] (x, y) in 0..1 of the image -> of the view."""
        x, y = (xy[..., 0] - self.x0) / self.side, (xy[..., 1] - self.y0) / self.side
        if self.mirror:
            x = 1 - x
        for _ in range(self.turns):
            x, y = y, 1 - x
        return np.stack([x, y], axis=-1)

    def pixels(self, grey: NDArray[np.uint8], size: int) -> Grey:
        """[cache, cache] uint8 -> [size, size] float 0..1, bicubic."""
        from PIL import Image

        cache = grey.shape[0]
        box = (self.x0 * cache, self.y0 * cache, (self.x0 + self.side) * cache, (self.y0 + self.side) * cache)
        image = Image.fromarray(np.ascontiguousarray(grey)).resize((size, size), Image.Resampling.BICUBIC, box=box)
        array = np.asarray(image, np.float32) / 255
        if self.mirror:
            array = array[:, ::-1]
        return np.ascontiguousarray(np.rot90(array, self.turns))

    def target(self, target: Target) -> Target:
        corners = np.array(target.box, np.float64).reshape(2, 2) / COORDINATE_SIZE
        turned = self.points(corners) * COORDINATE_SIZE
        (x1, y1), (x2, y2) = turned.min(0), turned.max(0)
        return Target((float(x1), float(y1), float(x2), float(y2)), target.label)

    def truth(self, truth: Truth) -> Truth:
        """The targets as seen in the view, without slivers; `fields` and `sentence` hold for the plain view only."""
        targets = tuple(self.target(t) for t in truth.targets if _shown(t.box, self) >= SLIVER)
        return msgspec.structs.replace(truth, targets=targets)


def _shown(box: tuple[float, float, float, float], view: View) -> float:
    """Share of a box's area that a view shows."""
    seen = view.target(Target(box, "")).box
    inside = clipped(seen)
    area = (seen[2] - seen[0]) * (seen[3] - seen[1])
    return (inside[2] - inside[0]) * (inside[3] - inside[1]) / area if inside and area > 0 else 0.0


def random_view(rng: np.random.Generator, truth: Truth | None, zoom: float = 0.6) -> View:
    """A random turn, and a random crop that cuts through no target."""
    turn = {"mirror": bool(rng.integers(2)), "turns": int(rng.integers(4))}
    if rng.random() < 0.6:
        for _ in range(4):
            side = float(rng.uniform(zoom, 1.0))
            view = View(float(rng.uniform(0, 1 - side)), float(rng.uniform(0, 1 - side)), side, **turn)  # type: ignore[arg-type]
            shares = [_shown(t.box, view) for t in truth.targets] if truth else []
            if all(s < SLIVER or s > 0.7 for s in shares):
                return view
    return View(**turn)  # type: ignore[arg-type]


def random_brightness(rng: np.random.Generator, grey: Grey) -> Grey:
    """Gain, gamma and a little noise: radiometry differs between sensors and products."""
    gain, gamma = np.exp(rng.normal(0, 0.25)), np.exp(rng.normal(0, 0.15))
    noise = rng.normal(0, 0.02 * rng.random(), grey.shape)
    return np.clip(gain * grey**gamma + noise, 0, 1).astype(np.float32)

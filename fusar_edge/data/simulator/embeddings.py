"""AlphaEarth-like vectors: unit length, 64 bands, alike where the land cover is alike.

They are simulated: class prototypes from a fixed seed, not samples of the real embedding space. A model trained on them
learns how to use anchors, not what real ones mean.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from fusar_edge.data.simulator.landcover import CLASSES, SEA, ClassMap

BANDS = 64
_PROTOTYPE_SEED = 64
_VARIATION = 0.35
"""Length of the smooth within-class part before normalising: neighbours of one class have cosines of 0.85 to 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Anchors:
    features: npt.NDArray[np.float32]
    """float32 [S, 64], unit length. S is the number of nodes that have a vector; 0 over open sea."""
    positions: npt.NDArray[np.float32]
    """float32 [S, 2], (y, x) in [0, 1]; 0 and 1 are the centres of the first and last pixel."""


@functools.cache
def prototypes() -> npt.NDArray[np.float64]:
    """float64 [classes, 64] of unit length; the same in every scene."""
    vectors = np.random.default_rng(_PROTOTYPE_SEED).standard_normal((len(CLASSES), BANDS))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _class_shares(classes: ClassMap, nodes: int) -> npt.NDArray[np.float64]:
    """float64 [nodes, nodes, classes]: shares in the window around each node that reaches halfway to its neighbours."""
    shares = np.empty((nodes, nodes, len(CLASSES)))
    edges = [_window_edges(n, nodes) for n in classes.shape]
    for row, (top, bottom) in enumerate(edges[0]):
        for column, (left, right) in enumerate(edges[1]):
            window = classes[top:bottom:2, left:right:2]
            shares[row, column] = np.bincount(window.ravel(), minlength=len(CLASSES)) / window.size
    return shares


def _window_edges(pixels: int, nodes: int) -> list[tuple[int, int]]:
    centres = np.linspace(0, pixels - 1, nodes) if nodes > 1 else np.array([(pixels - 1) / 2])
    half = (pixels - 1) / max(nodes - 1, 1) / 2
    return [(max(round(c - half), 0), min(round(c + half) + 1, pixels)) for c in centres]


def anchors_from_classes(rng: np.random.Generator, classes: ClassMap, nodes: int) -> Anchors:
    """One vector per node of a nodes x nodes grid with land or river near; open ocean has none, as in the real set."""
    axis = np.linspace(0.0, 1.0, nodes) if nodes > 1 else np.array([0.5])
    y, x = np.meshgrid(axis, axis, indexing="ij")
    shares = _class_shares(classes, nodes)
    # three random directions, each swelling over the scene as a plane wave
    directions = rng.standard_normal((3, BANDS)) / np.sqrt(BANDS)
    waves = rng.uniform(-1, 1, (3, 2)) * 4
    phases = rng.uniform(0, 2 * np.pi, 3)
    smooth = np.sin(np.stack([y * wy + x * wx + p for (wy, wx), p in zip(waves, phases, strict=True)], -1)) @ directions
    vectors = shares @ prototypes() + _VARIATION * smooth
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    present = shares[..., SEA] < 1.0
    positions = np.stack([y, x], axis=-1)[present]
    return Anchors(vectors[present].astype(np.float32), positions.astype(np.float32))

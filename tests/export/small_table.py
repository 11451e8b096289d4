"""Anchor tables of the published layout, without a source file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import CREDIT, LICENCE, NODATA, codes_from_vectors, valid_from_codes
from fusar_edge.anchors.layout import FORMAT, create_root, create_zone
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.manifest import Manifest, folder_hashes, write_manifest

Codes = npt.NDArray[np.int8]
SPACING_M = 10


def smooth_codes(rows: int, cols: int, seed: int = 0, dimensions: int = 6, masked: float = 0.1) -> Codes:
    """[rows, cols, 64] on a sphere of few dimensions, as real places are, with some noise; a share masked."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(99).normal(size=(dimensions, 64))
    y, x = np.meshgrid(np.linspace(0, 9, rows), np.linspace(0, 9, cols), indexing="ij")
    phases = rng.uniform(0, 6, (3, dimensions, 1, 1))
    waves = np.sin(y * phases[0] / 3 + phases[1]) * np.cos(x * phases[2] / 3)
    vectors = np.einsum("drc,db->rcb", waves, axes) + 0.2 * axes.sum(0) + 0.02 * rng.normal(size=(rows, cols, 64))
    codes = codes_from_vectors(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    codes[rng.random((rows, cols)) < masked] = NODATA
    return codes


def write_table(folder: Path, zones: dict[str, dict[int, Codes]], corner: tuple[int, int] = (30_000, 420_000)) -> Path:
    """`zones`: name -> year -> codes [rows, cols, 64], row 0 the northernmost. `corner`: cell column, row of the SW."""
    root = create_root(folder, SPACING_M, list(zones))
    figures = {}
    for zone, years in zones.items():
        rows, cols = next(iter(years.values())).shape[:2]
        cells = Cells(corner[0], corner[1], corner[0] + cols, corner[1] + rows)
        array = create_zone(root, zone, cells, sorted(years), SPACING_M)
        for index, year in enumerate(sorted(years)):
            array[index] = years[year]
        figures[zone] = {"valid_cells": {str(y): int(valid_from_codes(c).sum()) for y, c in sorted(years.items())}}
    manifest = Manifest(
        stage="anchors",
        inputs={"tile.tif": "7" * 64},
        files=folder_hashes(folder),
        figures={"spacing_m": SPACING_M, "years": sorted({y for z in zones.values() for y in z}), "zones": figures},
        settings={"format": FORMAT, "licence": LICENCE, "credit": CREDIT},
    )
    write_manifest(folder, manifest)
    return folder

"""Places of an anchor table to fit a basis on, and others to measure it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusar_edge.anchors.codes import valid_from_codes, vectors_from_codes
from fusar_edge.anchors.layout import CHUNK, shard_file
from fusar_edge.anchors.table import AnchorTable, Zone, read_codes
from fusar_edge.errors import AnchorError

PLACES = 50_000
"""Cells that are looked at at most, over all shards."""
SHARDS = 256
"""Shards that are read for them at most, spread evenly."""
HELD_OUT_SHARE = (0.1, 0.4)
"""Least and largest share of the places to measure on; a fifth where the table is large."""


class ShardPlace(NamedTuple):
    """One shard of a table, and the box of cells that it holds."""

    zone: Zone
    place: tuple[int, int, int]
    """Year index, shard row, shard column."""
    rows: slice
    cols: slice


@dataclass(frozen=True)
class Places:
    """Vectors of a table, parted by place."""

    fit: npt.NDArray[np.float32]
    """[n, 64]."""
    held_out: npt.NDArray[np.float32]
    """[m, 64], of blocks of cells that `fit` has nothing of, in any year."""
    block_cells: int
    """Side of those blocks: a chunk, or less where the table is small; 0 where nothing is fitted on this table."""


def listed_shards(table: AnchorTable) -> list[ShardPlace]:
    """The shards that hold a vector, by zone, year, row, column."""
    return [
        ShardPlace(
            zone,
            (year, row, col),
            slice(row * zone.shard, min((row + 1) * zone.shard, zone.rows)),
            slice(col * zone.shard, min((col + 1) * zone.shard, zone.cols)),
        )
        for zone in table.zones
        for year in range(len(zone.years))
        for row in range(-(-zone.rows // zone.shard))
        for col in range(-(-zone.cols // zone.shard))
        if shard_file(zone.name, year, row, col) in table.manifest.files
    ]


def read_places(
    table: AnchorTable,
    count: int = PLACES,
    *,
    fitting: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Places:
    """At most `count` cells with a vector, the same at every call. `progress` counts shards.

    Every fifth block is held out, a step of two columns further in each row, so that no row or column of blocks is
    without one; without `fitting`, all are. Raises AnchorError where there are too few cells to do so.
    """
    shards = listed_shards(table)
    chosen = [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, SHARDS).astype(int))] if shards else []
    samples = []
    for number, shard in enumerate(chosen, 1):
        samples.append(_sample(table, shard, -(-count // len(chosen)), seed=number))
        if progress:
            progress(number, len(chosen))
    if not samples:
        raise AnchorError(f"{table.path} holds no vector at all: there is nothing to bake")
    cells = np.concatenate([place for place, _ in samples])
    vectors = vectors_from_codes(np.concatenate([codes for _, codes in samples]))
    if not fitting:
        return Places(vectors[:0], vectors, 0)
    block = CHUNK
    while block:
        held = (cells[:, 0] // block + 2 * (cells[:, 1] // block)) % 5 == 0
        if HELD_OUT_SHARE[0] <= held.mean() <= HELD_OUT_SHARE[1]:
            return Places(vectors[~held], vectors[held], block)
        block //= 2
    raise AnchorError(
        f"{table.path} holds {len(cells)} vectors: too few to bake from some places and measure on others; give a "
        "table of a larger area, or --like a table that was baked from one"
    )


def _sample(
    table: AnchorTable, shard: ShardPlace, count: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """(row, column) [n, 2] and codes [n, 64] of cells with a vector."""
    codes = read_codes(table.path, shard.zone, shard.place, (shard.rows, shard.cols))
    places = np.argwhere(valid_from_codes(codes))
    if len(places) > count:
        places = places[np.sort(np.random.default_rng(seed).choice(len(places), count, replace=False))]
    corner = np.array([shard.rows.start, shard.cols.start])
    return places + corner, codes[places[:, 0], places[:, 1]]

"""`fusar-edge anchors bake`: a table of AlphaEarth codes -> a table of what TLM makes of them.

The MLP of TLM, f(a) = (gamma, beta), depends on the place alone: a baked table holds R int8 coefficients of f per cell
instead of 64 codes, and the engine that `export --anchors` makes for it holds the basis instead of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.anchors.codes import BANDS, NODATA, valid_from_codes, vectors_from_codes
from fusar_edge.anchors.layout import CHUNK, create_root, create_zone
from fusar_edge.anchors.sources.source import Cells
from fusar_edge.anchors.table import AnchorTable, Zone, read_codes
from fusar_edge.errors import AnchorError, GateError, InputError
from fusar_edge.export.baking.basis import (
    FILENAME,
    Basis,
    Fit,
    fit_directions,
    projector_from,
    read_basis,
    tlm_sha256,
    token_weight,
)
from fusar_edge.export.baking.error import compared_tokens, errors_by_rank, measured_error
from fusar_edge.export.baking.places import Places, listed_shards, read_places
from fusar_edge.export.baking.projector import STEP, Projector
from fusar_edge.manifest import (
    FILENAME as MANIFEST,
)
from fusar_edge.manifest import (
    Manifest,
    check_output,
    folder_hashes,
    output_folder,
    package_versions,
    sha256_file,
    write_manifest,
)
from fusar_edge.model.checkpoint import checkpoint_weights, model_from
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe

RANK = 32
MAX_ERROR = 0.05
"""Of what TLM says about a place beyond the mean: 0.05 leaves out 1/400 of its variance."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Baked:
    """A table that was baked, and what an export needs of it."""

    basis: Basis
    basis_sha256: str
    tlm_sha256: str
    figures: dict[str, Any]

    @property
    def form(self) -> dict[str, Any]:
        """The export's setting `anchors`."""
        return {"form": "baked", "bands": self.basis.rank, "basis_sha256": self.basis_sha256}


def bake_table(
    table: Path,
    checkpoint: str | Path,
    out: Path,
    *,
    rank: int | None = None,
    max_error: float = MAX_ERROR,
    like: Path | None = None,
    recipe: str | None = None,
    sigma: float | None = None,
    force: bool = False,
    progress: Progress = lambda done, total, text: None,
) -> Manifest:
    """Write the baked table `out`: the cells, years and zones of `table`, `rank` int8 coefficients in each.

    The basis is fitted on a part of the places and measured on others; with `like`, the basis of a table that was baked
    before is used, and measured, so that one engine serves both tables. `recipe`: a model recipe, which a checkpoint
    needs that has no manifest to say its base; `sigma`: of a legacy official one. AnchorError, InputError,
    RecipeError and CheckpointError for what cannot be baked; GateError where the error is above `max_error`. All of
    them leave no output.
    """
    check_output(out, force)
    source = _open_codes(table)
    given = _check_request(source, rank, max_error, like)
    of = None if recipe is None else load_recipe("export", recipe, ModelRecipe)[0]
    weights = checkpoint_weights(checkpoint, of, sigma=sigma)
    model = model_from(weights)
    mlp = model.tlm.film_mlp
    places = read_places(
        source, fitting=given is None, progress=lambda done, total: progress(done, total, "reading places")
    )
    progress(0, 1, "fitting")
    fit = None if given else _fitted(model, places, rank or RANK, checkpoint)
    basis = fit.basis(rank or RANK) if fit else _basis_of_same_tlm(given, tlm_sha256(mlp.state_dict()), checkpoint)
    projector = projector_from(mlp, basis)
    figures = _figures(model, basis, projector, places, max_error)
    _gate(figures, fit, mlp, places, table, max_error)
    with output_folder(out, force=force) as folder:
        _write_codes(source, projector, folder, progress)  # clears the folder
        basis.save(folder / FILENAME)
        manifest = _manifest(source, weights.hashes(), folder, basis, tlm_sha256(mlp.state_dict()), figures)
        write_manifest(folder, manifest)
    return manifest


def open_baked(table: Path) -> Baked:
    """A baked table for export; AnchorError for any other folder."""
    opened = AnchorTable.open(table)  # compares basis.npz with its hash
    settings = opened.manifest.settings
    if settings.get("form") != "baked":
        raise AnchorError(f"{table} holds AlphaEarth codes: `fusar-edge anchors bake` makes a baked table of it")
    return Baked(
        read_basis(table / FILENAME),
        settings["basis_sha256"],
        settings["tlm_sha256"],
        opened.manifest.figures["baked"],
    )


def _open_codes(table: Path) -> AnchorTable:
    opened = AnchorTable.open(table)
    if opened.bands != BANDS or opened.scale is not None:
        raise AnchorError(f"{table} is baked already: give the table of AlphaEarth codes that it was made from")
    return opened


def _check_request(source: AnchorTable, rank: int | None, max_error: float, like: Path | None) -> Baked | None:
    if rank is not None and like is not None:
        raise InputError(f"rank {rank} and --like {like}: the basis that is taken over has its rank; give one of them")
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}; give 1 or more")
    if not 0 < max_error < 1:
        raise InputError(f"max error is {max_error}; give a share between 0 and 1 (a constant has error 1)")
    return None if like is None else open_baked(like)


def _fitted(model: FusarForConditionalGeneration, places: Places, rank: int, checkpoint: str | Path) -> Fit:
    width = 2 * model.tlm.channels
    if rank > width:
        raise InputError(f"rank is {rank}: {checkpoint} gives {width} values for each place; ask for fewer")
    return fit_directions(model.tlm.film_mlp, places.fit, token_weight(model), rank)


def _basis_of_same_tlm(given: Baked | None, found: str, checkpoint: str | Path) -> Basis:
    assert given is not None
    if given.tlm_sha256 != found:
        raise InputError(f"--like was baked from another TLM than that of {checkpoint}; give its own checkpoint")
    return given.basis


def _figures(
    model: FusarForConditionalGeneration, basis: Basis, projector: Projector, places: Places, bound: float
) -> dict[str, Any]:
    return {
        "rank": basis.rank,
        "bytes_per_anchor": basis.rank,
        "error": measured_error(model.tlm.film_mlp, basis, projector, places.held_out),
        "bound": bound,
        "fit_cells": len(places.fit),
        "held_out_cells": len(places.held_out),
        "held_out_block_cells": places.block_cells,
        "visual_tokens": compared_tokens(model, basis, projector, places.held_out),
    }


def _gate(figures: dict[str, Any], fit: Fit | None, mlp: Any, places: Places, table: Path, bound: float) -> None:
    """GateError that says which rank would do."""
    reached = figures["error"]["tokens"]["vs_constant"]
    if reached <= bound:
        return
    if fit is None:
        advice = "the basis of --like does not fit this table: bake it with a basis of its own"
    else:
        errors = errors_by_rank(fit, mlp, places.held_out)
        good = np.flatnonzero(errors <= bound)
        best = int(errors.argmin())
        advice = f"a rank of {good[0] + 1} reaches it" if good.size else f"no rank does, the best is {errors[best]:.4f}"
    raise GateError(
        f"{table}: {figures['rank']} coefficients leave an error of {reached:.4f} of what TLM says about "
        f"{figures['held_out_cells']} held-out places, the bound is {bound}: {advice}. Nothing was written"
    )


def _write_codes(source: AnchorTable, projector: Projector, folder: Path, progress: Progress) -> None:
    """Every shard of `source`, a band of chunks at a time."""
    rank = projector.rank
    root = create_root(folder, source.spacing_m, [zone.name for zone in source.zones], scale=[STEP] * rank)
    arrays = {
        zone.name: create_zone(
            root, zone.name, _cells(zone, source.spacing_m), list(zone.years), source.spacing_m, bands=rank
        )
        for zone in source.zones
    }
    shards = listed_shards(source)
    for number, shard in enumerate(shards, 1):
        codes = read_codes(source.path, shard.zone, shard.place, (shard.rows, shard.cols))
        baked = np.full((*codes.shape[:2], rank), NODATA, np.int8)
        for row in range(0, len(codes), CHUNK):
            band = codes[row : row + CHUNK]
            valid = valid_from_codes(band)
            baked[row : row + CHUNK][valid] = projector.codes(vectors_from_codes(band[valid]))
        arrays[shard.zone.name][shard.place[0], shard.rows, shard.cols] = baked
        progress(number, len(shards), "baking shards")


def _cells(zone: Zone, spacing_m: int) -> Cells:
    col0, row1 = round(zone.west / spacing_m), round(zone.north / spacing_m)
    return Cells(col0, row1 - zone.rows, col0 + zone.cols, row1)


def _manifest(
    source: AnchorTable, weights: dict[str, str], folder: Path, basis: Basis, tlm: str, figures: dict[str, Any]
) -> Manifest:
    return Manifest(
        stage="anchors",
        inputs={"table/manifest.json": sha256_file(source.path / MANIFEST)}
        | weights
        | {f"source/{name}": value for name, value in source.manifest.inputs.items()},
        files=folder_hashes(folder),
        figures=source.manifest.figures | {"baked": figures},
        settings=source.manifest.settings
        | {"form": "baked", "bands": basis.rank, "tlm_sha256": tlm, "basis_sha256": sha256_file(folder / FILENAME)},
        packages=package_versions("zarr", "numpy", "torch"),
    )

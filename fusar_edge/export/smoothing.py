"""SmoothQuant between checkpoint and graphs: what `export --smooth RECIPE --data MANIFEST` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.calib.graphs import SMOOTHING_LISTING, GraphFolder
from fusar_edge.calib.tiles.choice import choose
from fusar_edge.calib.tiles.listing import listing, write_listing
from fusar_edge.errors import InputError, RecipeError
from fusar_edge.export.parity import check_fold
from fusar_edge.manifest import Manifest, sha256_file
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.sar.radiometry import Radiometry
from fusar_edge.specs import CalibRecipe, ExportSpec

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Smoothing:
    """What is asked for."""

    recipe: CalibRecipe
    text: str
    data: tuple[Path, ...]


@dataclass(frozen=True)
class Folded:
    """What was done, for the manifest."""

    figures: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, str]


def smoothing(recipe_name: str | None, data: Sequence[Path]) -> Smoothing | None:
    """RecipeError for a recipe without [smooth]; InputError for one of the two without the other."""
    if recipe_name is None:
        if data:
            raise InputError("--data is for --smooth RECIPE, which chooses factors on tiles: give both or neither")
        return None
    recipe, text = load_recipe("calib", recipe_name, CalibRecipe)
    if recipe.smooth is None:
        raise RecipeError(f"--smooth {recipe_name}: that recipe has no [smooth]; export without --smooth")
    if not data:
        raise InputError(f"--smooth {recipe_name} chooses factors on real activations: give --data MANIFEST")
    return Smoothing(recipe, text, tuple(data))


def smoothed(
    model: FusarForConditionalGeneration,
    checkpoint: Path,
    parent: Manifest,
    exported: dict[str, Any],
    wanted: Smoothing,
    spec: ExportSpec,
    out: Path,
    progress: Progress,
) -> Folded:
    """Fold the factors into `model`, in place, and write the list of tiles into `out`.

    `exported`: what export.run.settings says of the model. GateError where the model then is not what it was.
    """
    from fusar_edge.calib.smoothquant.smooth import smooth

    assert wanted.recipe.smooth is not None
    known = {name: value for name, value in exported.items() if name in BundleSettings.__struct_fields__}
    settings = msgspec.convert(known | {"precision": "fp32"}, BundleSettings)
    graphs = GraphFolder(checkpoint, parent, settings, Radiometry())
    chosen = choose(wanted.data, wanted.recipe.set, graphs.radiometry, _told(progress, "choosing tiles"))
    samples = [tile.triplet for tile in chosen.tiles]
    report: dict[str, Any] = {}

    def fold() -> None:
        done = smooth(model, graphs, samples, spec_smooth, wanted.recipe.ranges, _told(progress, "smoothing"))
        report.update({name: asdict(seam) for name, seam in done.items()})

    spec_smooth = wanted.recipe.smooth
    equality = check_fold(model, fold, spec)
    write_listing(out / SMOOTHING_LISTING, listing(chosen))
    return Folded(
        figures={"folded_vs_unfolded": equality, "smooth": {"recipe": wanted.recipe.name, "seams": report}},
        settings={"smooth": msgspec.to_builtins(spec_smooth)},
        inputs={f"smooth/{path.parent.name}/{path.name}": sha256_file(path) for path in wanted.data},
    )


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(done, total, what)

"""Calibration of one layer while it is in memory: SmoothQuant folded, outliers chosen, ranges taken.

The same recipes, formulas and inputs as `export --smooth` and `calibrate` (fusar_edge.calib), which need the whole
model: there every tensor of the FP32 graph is seen on every tile, here a layer's, on what the layers before it gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusar_edge.calib.outliers import Split, outlier_channels
from fusar_edge.calib.qdq import Linear
from fusar_edge.calib.ranges import AbsoluteHistogram
from fusar_edge.calib.smoothquant.seams import fold
from fusar_edge.calib.smoothquant.smooth import Rows, best, in_order
from fusar_edge.errors import DataError
from fusar_edge.export.lean.modules import Layer
from fusar_edge.specs import CalibRecipe

Channels = npt.NDArray[np.int64]
Run = Callable[[], Any]
"""Runs the layer on every calibration sample."""


@dataclass(frozen=True)
class Calibrated:
    """What is known of a layer's linears."""

    ranges: dict[str, float] = field(default_factory=dict)
    """Activation -> |x| that becomes 127."""
    splits: dict[str, Split] = field(default_factory=dict)
    seams: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Seam -> what SmoothQuant did."""

    def record(self) -> dict[str, Any]:
        """For the journal."""
        splits = {name: [split.channels.tolist(), split.largest] for name, split in self.splits.items()}
        return {"ranges": self.ranges, "splits": splits, "seams": self.seams}


def calibrated(layer: Layer, linears: list[Linear], recipe: CalibRecipe, run: Run) -> Calibrated:
    """Fold the factors into `layer`, in place, and measure. `linears`: those of the layer that can be quantised.

    `run` is called once or twice. DataError for an activation that is not finite.
    """
    modules = layer.linears()
    known = [linear for linear in linears if linear.name in modules]
    maxima: dict[str, Tensor] = {}
    seams: dict[str, dict[str, Any]] = {}
    asked = _asked(known, recipe)
    chosen = _seams(layer, recipe)
    if chosen or asked:
        assert recipe.smooth is not None or not chosen
        rows = [Rows(seam, recipe.smooth.rows if recipe.smooth else 0, seed) for seed, seam in enumerate(chosen)]
        watched = {linear.name: _maximum(maxima, linear.name) for linear in asked}
        with _hooked(
            [(modules[n], hook) for n, hook in watched.items()] + [(modules[r.seam.name], r.hook) for r in rows]
        ):
            run()
        for held in in_order(rows):
            assert recipe.smooth is not None
            done, factors = best(held.seam, held, recipe.smooth, recipe.ranges)
            seams[held.seam.name] = asdict(done)
            if factors is None:
                continue
            fold(held.seam, factors)
            for reader in held.seam.readers.keys() & maxima.keys():
                maxima[reader] /= factors[held.seam.group]
    outliers = {a.activation: _channels(maxima[a.name], recipe) for a in asked}
    outliers = {name: channels for name, channels in outliers.items() if len(channels)}
    whole: dict[str, AbsoluteHistogram] = {}
    rest: dict[str, AbsoluteHistogram] = {}
    hooks = []
    for linear in known:
        if linear.activation not in whole:
            whole[linear.activation] = AbsoluteHistogram()
            histograms: list[tuple[AbsoluteHistogram, Channels | None]] = [(whole[linear.activation], None)]
            if linear.activation in outliers:
                rest[linear.activation] = AbsoluteHistogram()
                histograms.append((rest[linear.activation], outliers[linear.activation]))
            hooks.append((modules[linear.name], _counting(histograms, linear.name)))
    with _hooked(hooks):
        run()
    ranges = {name: histogram.range(recipe.ranges) for name, histogram in whole.items()}
    inner = {name: histogram.range(recipe.ranges) for name, histogram in rest.items()}
    splits = {
        a.name: Split(outliers[a.activation], inner[a.activation]) for a in asked if inner.get(a.activation, 0) > 0
    }
    return Calibrated(ranges, splits, seams)


def _asked(linears: list[Linear], recipe: CalibRecipe) -> list[Linear]:
    """Linears that may have outliers."""
    patterns = recipe.outliers.linears if recipe.outliers else ()
    return [a for a in linears if a.op == "MatMul" and any(fnmatchcase(a.name, p) for p in patterns)]


def _seams(layer: Layer, recipe: CalibRecipe) -> list[Any]:
    patterns = recipe.smooth.linears if recipe.smooth else ()
    return [s for s in layer.seams if any(fnmatchcase(name, p) for name in s.readers for p in patterns)]


def _channels(largest: Tensor, recipe: CalibRecipe) -> Channels:
    assert recipe.outliers is not None
    return outlier_channels(largest.numpy(), recipe.outliers)


def _maximum(maxima: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].detach().abs().reshape(-1, inputs[0].shape[-1]).amax(0)
        maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    return hook


def _counting(histograms: list[tuple[AbsoluteHistogram, Channels | None]], name: str) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        value = inputs[0].detach().numpy()
        for histogram, without in histograms:
            try:
                histogram.add(value if without is None else np.delete(value, without, axis=-1))
            except ValueError as problem:
                raise DataError(
                    f"the input of {name} is {problem} on a calibration input; check the checkpoint"
                ) from None

    return hook


class _hooked:
    """Forward pre-hooks while a block runs."""

    def __init__(self, hooks: list[tuple[Any, Any]]) -> None:
        self.hooks = hooks

    def __enter__(self) -> None:
        self.handles = [module.register_forward_pre_hook(hook) for module, hook in self.hooks]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def splits_from(record: Mapping[str, Any]) -> dict[str, Split]:
    """Of a journal's line."""
    return {name: Split(np.array(c, np.int64), largest) for name, (c, largest) in record.get("splits", {}).items()}

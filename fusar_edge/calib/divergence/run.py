"""The first layer at which two precisions of one model part: `calibrate --compare A B`.

Both run on the same pixels, anchors, prompt and reference answer, each on its own visual tokens and cache, so that
errors add up as they do on the device; the first layer beyond its band is where to look. Sums run in float64 and no
activation is kept beyond its run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fusar_edge.calib.divergence.layer_sums import LayerSums
from fusar_edge.calib.divergence.sides import Side, open_side
from fusar_edge.calib.divergence.taps import TOKENS, Values
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.tiles.samples import SampleReader
from fusar_edge.data.triplets import Triplet
from fusar_edge.errors import DataError, InputError
from fusar_edge.export.baking.projector import FILENAME as PROJECTOR

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int, int], None]
SAME = ("image_size", "cells", "channels", "layers", "kv_heads", "head_dim", "vocab_size", "image_token_id", "anchors")
"""Settings in which two precisions of one model agree."""
BLOCK = re.compile(r"vision\.blocks\.\d+")
PART = re.compile(r"(vision|decoder)\.((blocks|layers)\.\d+|merger)|tlm")
SMOOTHED = ("*norm*", "*.ln_q", "*.attn.qkv", "*.v_proj", "*.cache.value", "*.up_proj")
"""Layers whose channels SmoothQuant may have scaled (fusar_edge.calib.smoothquant.seams)."""


@dataclass(frozen=True)
class Band:
    """What two precisions of a layer may differ by."""

    cosine: float = 0.99
    """Least, over all samples."""
    norm_ratio: float = 0.05
    """Largest distance of |b| / |a| from 1."""


@dataclass(frozen=True)
class LayerFigures:
    """What one layer gave on side B against A."""

    name: str
    cosine: float | None
    """Over all samples; None where a side is not finite. 1 where both are all zeros, 0 where one is."""
    cosine_least: float | None
    """Of one sample."""
    norm_ratio: float | None
    """|b| / |a|; None where it cannot be said: a side is not finite, A alone is all zeros, or `rescaled`."""
    nan_a: int
    """Values that are NaN or infinite."""
    nan_b: int
    rescaled: bool
    """Its channels have other scales in B: the cosine is the mean of theirs, and the norm has no band."""
    problem: str
    """What is wrong, in words; empty within the band."""


@dataclass(frozen=True)
class Divergence:
    """All layers that both sides show, in the order of A's graph, and the first beyond the band."""

    layers: list[LayerFigures]
    first: LayerFigures | None
    reason: str
    not_finite: LayerFigures | None
    """First layer with a NaN or infinity, which may come behind `first`."""
    unmatched: list[str]
    """Layers that one side alone shows."""


def compare_precisions(
    a: Path,
    b: Path,
    samples: list[Triplet],
    band: Band = Band(),
    progress: Progress | None = None,
    *,
    isolated: bool = False,
    rescaled: Collection[str] | None = None,
) -> Divergence:
    """Compare B with the reference A: each a folder that fusar_edge.calib.divergence.sides names.

    `isolated`: B runs on the visual tokens and the past of A, so that a step of the decoder inherits nothing.
    `rescaled`: patterns of layers whose channels have other scales in B; None: SMOOTHED where the manifests tell of
    unlike smoothing, else no layer. `progress(done, total)` counts samples. InputError for a folder of another kind,
    two models, or no sample.
    """
    if not samples:
        raise DataError("no sample to compare on: give a manifest with at least one image")
    with contextlib.ExitStack() as held:
        sides = []
        for path in (a, b):
            sides.append(open_side(Path(path)))
            held.callback(sides[-1].close)
        folders = [side.folder for side in sides]
        reader = _reader(*folders)
        if rescaled is None:
            rescaled = () if _smoothing(folders[0]) == _smoothing(folders[1]) else SMOOTHED
        if isolated and rescaled:
            raise InputError(f"{b} cannot take the past of {a}: channels of its values have other scales; not isolated")
        comparison = _Comparison(f"A ({a})", f"B ({b})", rescaled)
        for number, sample in enumerate(samples, 1):
            for pair in _runs(sides[0], sides[1], reader, sample, isolated):
                comparison.add(*pair)
            comparison.close_sample()
            if progress:
                progress(number, len(samples))
    return comparison.result(band)


def _reader(a: GraphFolder, b: GraphFolder) -> SampleReader:
    """For what both take. InputError where they are two models."""
    for name in SAME:
        one, other = getattr(a.settings, name), getattr(b.settings, name)
        if one != other:
            raise InputError(f"{a.path} has {name} {one}, {b.path} has {other}: give two precisions of one model")
    # Where anchors are baked: a bundle holds no projector, the folder of its graphs does.
    source = b if (b.path / PROJECTOR).is_file() else a
    room = min(a.settings.context_tokens, b.settings.context_tokens)
    settings = msgspec.structs.replace(source.settings, context_tokens=room)
    return SampleReader(GraphFolder(source.path, source.manifest, settings, source.radiometry))


def _smoothing(folder: GraphFolder) -> Any:
    """What `export --smooth` wrote down; the stages that follow keep it."""
    figures = folder.manifest.figures
    return figures.get("export", figures).get("smooth")


def _runs(a: Side, b: Side, reader: SampleReader, sample: Triplet, isolated: bool) -> Iterator[tuple[Values, Values]]:
    """What both gave in each run: vision with and without anchors, then the prompt and the answer."""
    for feed in reader.vision_feeds(sample):
        seen = a.see(feed), b.see(feed)
        yield seen
    visual = [side[TOKENS] for side in (seen[0], seen[0] if isolated else seen[1])]
    a.begin()
    b.begin()
    for step in reader.steps(sample):
        past = a.past() if isolated else None
        yield a.step(step, visual[0]), b.step(step, visual[1], past)


class _Comparison:
    """Sums of each layer: of the sample at hand, and of all."""

    def __init__(self, a: str, b: str, rescaled: Collection[str]) -> None:
        """`a`, `b`: what to call the sides."""
        self.sides, self.rescaled = (a, b), rescaled
        self.sample: dict[str, LayerSums] = {}
        self.total: dict[str, LayerSums] = {}
        self.least: dict[str, float | None] = {}
        self.unmatched: dict[str, None] = {}

    def add(self, a: Values, b: Values) -> None:
        """One run."""
        blocks = [len({match[0] for name in side if (match := BLOCK.match(name))}) for side in (a, b)]
        if all(blocks) and blocks[0] != blocks[1]:
            self._two_models("{} blocks of vision", *blocks)
        self.unmatched |= dict.fromkeys(name for one, other in ((a, b), (b, a)) for name in one if name not in other)
        for name, value in a.items():
            other = b.get(name)
            if other is None:
                continue
            if value.shape != other.shape:
                self._two_models(f"{name} of shape {{}}", value.shape, other.shape)
            self.sample.setdefault(name, LayerSums(value.shape[-1])).add(value, other)

    def close_sample(self) -> None:
        for name, sums in self.sample.items():
            found = sums.cosine(self._is_rescaled(name))
            before = self.least.get(name, 1.0)
            self.least[name] = None if found is None or before is None else min(found, before)
            self.total.setdefault(name, LayerSums(len(sums.dot))).merge(sums)
        self.sample = {}

    def result(self, band: Band) -> Divergence:
        layers = [self._figures(name, band) for name in self.total]
        first = next((layer for layer in layers if layer.problem), None)
        not_finite = next((layer for layer in layers if layer.nan_a or layer.nan_b), None)
        if first is None:
            reason = f"all {len(layers)} layers: cosine {band.cosine} or more, norms within {band.norm_ratio:.0%}"
        else:
            reason = f"{first.name}: {first.problem}"
        if not_finite not in (None, first):
            assert not_finite is not None
            reason += f"; {not_finite.name}: {not_finite.problem}"
        return Divergence(layers, first, reason, not_finite, list(self.unmatched))

    def _figures(self, name: str, band: Band) -> LayerFigures:
        sums, rescaled = self.total[name], self._is_rescaled(name)
        ratio = None if rescaled else sums.norm_ratio()
        figures = LayerFigures(
            name, sums.cosine(rescaled), self.least[name], ratio, sums.nan_a, sums.nan_b, rescaled, ""
        )
        return dataclasses.replace(figures, problem=_problem(figures, band, self.sides))

    def _is_rescaled(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.rescaled)

    def _two_models(self, what: str, a: object, b: object) -> None:
        one, other = (f"{side} has {what.format(value)}" for side, value in zip(self.sides, (a, b), strict=True))
        raise InputError(f"{one}, {other}: give two precisions of one model")


def _problem(layer: LayerFigures, band: Band, sides: tuple[str, str]) -> str:
    counts = [(count, side) for count, side in zip((layer.nan_a, layer.nan_b), sides, strict=True) if count]
    if counts:
        return " and ".join(f"{count} values of {side} are NaN or infinite" for count, side in counts)
    if layer.norm_ratio is None and not layer.rescaled:
        return f"all zeros in {sides[0]}, and not in {sides[1]}"
    problems = []
    if layer.cosine is not None and layer.cosine < band.cosine:
        problems.append(f"cosine {layer.cosine:.6f} is below {band.cosine}")
    if layer.norm_ratio is not None and abs(layer.norm_ratio - 1) > band.norm_ratio:
        problems.append(f"ratio of norms {layer.norm_ratio:.6f} is farther from 1 than {band.norm_ratio}")
    return ", ".join(problems)


def table(divergence: Divergence, *, every_layer: bool = False) -> Table:
    """For people: of each block the layer that is worst, or every layer; the first divergent one is marked."""
    from rich.table import Table

    shown = Table("layer", "cosine", "least", "|b| / |a|", "not finite", title=divergence.reason, title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for layer in divergence.layers if every_layer else _worst(divergence):
        counts = [f"{n} in {side}" for n, side in ((layer.nan_a, "A"), (layer.nan_b, "B")) if n]
        figures = [_figure(value) for value in (layer.cosine, layer.cosine_least, layer.norm_ratio)]
        first = layer == divergence.first
        name = f"{layer.name} <- first" if first else layer.name
        shown.add_row(name, *figures, ", ".join(counts), style="bold red" if first else None)
    if divergence.unmatched:
        shown.caption = f"{len(divergence.unmatched)} layers that one side alone shows are not compared"
    return shown


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _worst(divergence: Divergence) -> Iterator[LayerFigures]:
    """Of each part of the network one layer: the first divergent, else the one with the least cosine."""
    parts: dict[str, list[LayerFigures]] = {}
    for layer in divergence.layers:
        found = PART.match(layer.name)
        parts.setdefault(found[0] if found else layer.name, []).append(layer)
    for layers in parts.values():
        if divergence.first in layers:
            yield divergence.first
        else:
            yield min(layers, key=lambda layer: -1.0 if layer.cosine is None else layer.cosine)

"""What calibration measured on the FP32 graphs, from which an INT8 graph with any of its layers is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusar_edge.calib.adapter_file import refer_to_adapter
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.outliers import Split, outlier_channels
from fusar_edge.calib.products.fusion import fused_linears
from fusar_edge.calib.qdq import Linear, half_embeddings, kept_layers, linears, quantised, reaches, save_graph
from fusar_edge.calib.ranges import Feeds, channel_maxima, collect_ranges
from fusar_edge.calib.tiles.samples import SampleReader
from fusar_edge.data.triplets import Triplet
from fusar_edge.errors import RecipeError
from fusar_edge.runtime.backend import Backend
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.specs import CalibRecipe, OutlierSpec

if TYPE_CHECKING:
    from onnx import ModelProto

NO_ANCHORS = "no tile of the calibration data has anchors, so its range is unknown"
ALL_ZERO = "its input is 0 on all calibration data"
Tick = Callable[[], Any]


@dataclass(frozen=True)
class MeasuredGraph:
    """One FP32 graph."""

    source: Path
    model: ModelProto
    layers: list[Linear]
    kept: dict[str, str]
    """Layer name -> why it stays in higher precision: what the recipe keeps, and what cannot be quantised."""
    ranges: dict[str, float]
    """Activation name -> |x| that becomes 127; for every layer that can be quantised."""
    splits: dict[str, Split]
    """Layer name -> its outliers."""

    def able(self) -> list[Linear]:
        """Layers that have a range, whether the recipe keeps them or not."""
        return [layer for layer in self.layers if self.ranges.get(layer.activation, 0) > 0]

    def chosen(self, also_kept: Collection[str] = ()) -> list[Linear]:
        """Layers that become INT8."""
        return [a for a in self.able() if a.name not in self.kept and a.name not in also_kept]

    def write(self, path: Path, layers: list[Linear]) -> list[str]:
        """Write the graph with `layers` in INT8; returns the tables that became FP16."""
        names = {layer.name for layer in layers}
        splits = {name: split for name, split in self.splits.items() if name in names}
        result = quantised(self.model, layers, self.ranges, splits)
        tables = half_embeddings(result)
        refer_to_adapter(result, path.parent)
        save_graph(result, path)
        return tables

    def written(self, path: Path, also_kept: dict[str, str] | None = None) -> dict[str, Any]:
        """Write the INT8 graph; returns what was done to it."""
        kept = self.kept | (also_kept or {})
        chosen = self.chosen(kept)
        tables = self.write(path, chosen)
        return {
            "int8": len(chosen),
            "fused_on_cpu": fused_linears(path),
            "kept": {layer.name: kept[layer.name] for layer in self.layers if layer.name in kept},
            "half": tables,
            "bytes_fp32": _size(self.source),
            "bytes_int8": _size(path),
            "ranges": {layer.name: float(self._range(layer)) for layer in chosen},
            "outliers": {a.name: self.splits[a.name].channels.tolist() for a in chosen if a.name in self.splits},
        }

    def _range(self, layer: Linear) -> float:
        split = self.splits.get(layer.name)
        return self.ranges[layer.activation] if split is None else split.largest


def measured(
    graphs: GraphFolder,
    recipe: CalibRecipe,
    samples: list[Triplet],
    reader: SampleReader,
    fp32: Backend,
    tick: Tick = lambda: None,
) -> dict[str, MeasuredGraph]:
    """vision.onnx and decoder.onnx, each run on every sample.

    `tick` is called at most `passes(recipe)` times a sample.
    """

    def vision_feeds() -> Iterator[Feeds]:
        for sample in samples:
            yield from reader.vision_feeds(sample)
            tick()

    def decoder_feeds() -> Iterator[Feeds]:
        for sample in samples:
            yield from reader.decoder_feeds(fp32, sample)
            tick()

    anchored = any(sample.aef for sample in samples)
    return {
        VISION: _measured(graphs.path / VISION, recipe, vision_feeds, anchored=anchored),
        DECODER: _measured(graphs.path / DECODER, recipe, decoder_feeds),
    }


def passes(recipe: CalibRecipe) -> int:
    """How often all samples are run, at most."""
    return 6 if recipe.outliers else 2


def _measured(
    source: Path, recipe: CalibRecipe, feeds: Callable[[], Iterator[Feeds]], anchored: bool = True
) -> MeasuredGraph:
    import onnx

    model = onnx.load(source)
    layers = linears(model)
    kept = kept_layers(layers, recipe.keep, str(source))
    able = layers
    if not anchored:
        seen = reaches(model, "pixels")
        able = [layer for layer in layers if layer.activation in seen]
        kept = {a.name: NO_ANCHORS for a in layers if a.activation not in seen} | kept
    splits: dict[str, Split] = {}
    if recipe.outliers:
        splits = _splits(source, recipe, recipe.outliers, able, feeds)
    ranges = collect_ranges(source, [layer.activation for layer in able], feeds(), recipe.ranges)
    kept |= {a.name: ALL_ZERO for a in able if ranges[a.activation] == 0 and a.name not in kept}
    return MeasuredGraph(source, model, layers, kept, ranges, splits)


def _splits(
    source: Path, recipe: CalibRecipe, spec: OutlierSpec, layers: list[Linear], feeds: Callable[[], Iterator[Feeds]]
) -> dict[str, Split]:
    asked = [a for a in layers if a.op == "MatMul" and any(fnmatchcase(a.name, p) for p in spec.linears)]
    maxima = channel_maxima(source, [layer.activation for layer in asked], feeds())
    channels = {a.activation: outlier_channels(maxima[a.activation], spec) for a in asked}
    channels = {name: found for name, found in channels.items() if len(found)}
    if not channels:
        return {}
    ranges = collect_ranges(source, channels, feeds(), recipe.ranges, without=channels)
    return {
        a.name: Split(channels[a.activation], ranges[a.activation]) for a in asked if ranges.get(a.activation, 0) > 0
    }


def check_patterns(graphs: GraphFolder, recipe: CalibRecipe) -> None:
    """RecipeError for a pattern of [keep] or [outliers] that fits no layer of the graphs that it could be meant for.

    TLM's layers may be absent: a graph for baked tables has others.
    """
    import onnx

    models = [onnx.load(graphs.path / name, load_external_data=False) for name in (VISION, DECODER)]
    layers = [layer for model in models for layer in linears(model)]
    check_layers(layers, recipe, str(graphs.path), baked=graphs.settings.anchors.form == "baked")


def check_layers(layers: list[Linear], recipe: CalibRecipe, where: str, *, baked: bool) -> None:
    """As `check_patterns`, of layers that are at hand; `where`: whose they are."""
    products = [layer for layer in layers if layer.op == "MatMul"]
    asked = [("[keep]", pattern, layers) for pattern in recipe.keep]
    asked += [("[outliers] linears:", p, products) for p in (recipe.outliers.linears if recipe.outliers else ())]
    for section, pattern, among in asked:
        absent = baked and pattern.startswith("tlm.")
        if not absent and not any(fnmatchcase(layer.name, pattern) for layer in among):
            raise RecipeError(
                f"recipe {recipe.name}: {section} {pattern!r} fits no layer of {where} that can be quantised so, "
                f"such as {among[0].name}"
            )


def _size(path: Path) -> int:
    """Bytes of a graph with its external weights."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

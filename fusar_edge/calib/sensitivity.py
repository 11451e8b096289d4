"""Which layers suffer from INT8: one group of layers at a time in INT8, all others in FP32.

The reasons in [keep] of a recipe come from it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusar_edge.calib.compare import compared
from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.calib.qdq import Linear, linears, quantised, save_graph
from fusar_edge.calib.ranges import Feeds, collect_ranges
from fusar_edge.calib.samples import SampleReader, split_samples
from fusar_edge.data.triplets import Triplet, read_triplets
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import Backend
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.runtime.ort import open_ort
from fusar_edge.specs import CalibRecipe


def group_of(layer: str) -> str:
    """`vision.blocks.3.attn.qkv` -> `vision.blocks.*.attn.qkv`, a pattern that [keep] understands."""
    return re.sub(r"(blocks|layers)\.\d+\.", r"\1.*.", layer)


def sensitivity(recipe_name: str, onnx_dir: Path, data: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Group of layers -> figures of `compare.compared` with that group alone in INT8; [keep] is ignored."""
    recipe, _ = load_recipe("calib", recipe_name, CalibRecipe)
    graphs = open_graphs(onnx_dir, stages=("export",))
    samples, held_out = split_samples([t for path in data for t in read_triplets(path)], recipe.samples, recipe.seed)
    reader, fp32 = SampleReader(graphs), open_ort(graphs.bundle())
    vision_feeds = (feed for s in samples for feed in reader.vision_feeds(s))
    decoder_feeds = (feed for s in samples for feed in reader.decoder_feeds(fp32, s))
    figures: dict[str, dict[str, float]] = {}
    for name, feeds in ((VISION, vision_feeds), (DECODER, decoder_feeds)):
        figures |= _by_group(graphs, name, recipe, feeds, fp32, reader, held_out)
    return figures


def _by_group(
    graphs: GraphFolder,
    name: str,
    recipe: CalibRecipe,
    feeds: Iterable[Feeds],
    fp32: Backend,
    reader: SampleReader,
    held_out: list[Triplet],
) -> dict[str, dict[str, float]]:
    import onnx

    model = onnx.load(graphs.path / name)
    layers = linears(model)
    ranges = collect_ranges(graphs.path / name, [layer.activation for layer in layers], feeds, recipe.ranges)
    groups: dict[str, list[Linear]] = {}
    for layer in layers:
        if ranges[layer.activation] > 0:
            groups.setdefault(group_of(layer.name), []).append(layer)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group, members in groups.items():
            work = Path(folder) / "one"
            shutil.copytree(graphs.path, work)
            save_graph(quantised(model, members, ranges), work / name)
            figures[group] = compared(open_ort(graphs.bundle(work)), fp32, reader, held_out)
            shutil.rmtree(work)
    return figures

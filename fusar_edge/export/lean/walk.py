"""The walk through a model, layer by layer: each is read, calibrated, written, proven and forgotten.

Between two layers there are only the values that the next one reads, in groups:

    float|i   sample i in float32, in PyTorch: what ranges are taken from, and what INT8 is compared with
    ort       the written FP32 graph in ONNX Runtime on the proof's image and text
    int8|i    the written INT8 graph in ONNX Runtime on held-out sample i
    hf        what Hugging Face's own forward says of the proof's image and text
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
import torch

from fusar_edge.calib.compare import cosine, divergence, norm_ratio
from fusar_edge.calib.gate import check_figures
from fusar_edge.calib.outliers import Split
from fusar_edge.calib.qdq import Linear, embedding_tables
from fusar_edge.export.adapters import folds_of
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.lean.calibrating import Calibrated, calibrated, splits_from
from fusar_edge.export.lean.data_file import DataFile
from fusar_edge.export.lean.embedding import EMBEDDING_TABLE, embedded, in_half, write_table
from fusar_edge.export.lean.figures import int8_figures, vision_figures, worst_equality
from fusar_edge.export.lean.float_run import anchors_of, float_values, text_of
from fusar_edge.export.lean.graphs import Graph, Int8
from fusar_edge.export.lean.hugging_face import reference
from fusar_edge.export.lean.modules import (
    TLM,
    Layer,
    Layers,
    embedding_rows,
    numpy_tensors,
)
from fusar_edge.export.lean.parts import BEFORE, HEAD, Array, Part, Runner, model_of, parts_of, types_of
from fusar_edge.export.lean.questions import Asked
from fusar_edge.export.lean.rewriting import held_elsewhere, written_graph, written_part
from fusar_edge.export.lean.skeleton import empty_model
from fusar_edge.export.lean.unfinished import Line, Unfinished, Values, flattened, grouped
from fusar_edge.export.parity import STEPS, Gate, Sample, sample
from fusar_edge.model.adapted import AdaptedLinear
from fusar_edge.runtime.adapters import Placed, data_name
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.specs import ExportSpec

REFERENCE, EMBEDDING = "hugging face", "decoder.embed_tokens"
HEAD_WEIGHT = "decoder.lm_head.weight"
NO_ANCHORS = "no tile of the calibration data has anchors, so its range is unknown"
ALL_ZERO = "its input is 0 on all calibration data"
Progress = Callable[[int, int, str], None]


class Walk:
    """Goes through the layers in order; `steps` are their names, and `step` does one."""

    def __init__(
        self,
        layers: Layers,
        skeletons: dict[str, onnx.ModelProto],
        linears: dict[str, list[Linear]],
        spec: ExportSpec,
        work: Unfinished,
        int8: Int8 | None,
        apart: Mapping[str, Placed] = {},
    ) -> None:
        """`apart`: places of the adapter's tensors in its own file, which is there."""
        self.layers, self.spec, self.work, self.int8 = layers, spec, work, int8
        self.model = empty_model(layers.config)
        self.decoder = DecoderGraph(self.model).decoder
        self.proof: Sample = sample(self.model, 1, bands=_bands(layers))
        self.graphs = {
            name: Graph(
                name,
                skeletons[name],
                linears[name],
                parts_of(skeletons[name]),
                types_of(skeletons[name]),
                DataFile(
                    work.folder / f"{name}.data",
                    work.entries(name),
                    apart,
                    data_name(layers.branch.name) if layers.branch else "",
                ),
                embedding_tables(skeletons[name]) if int8 else [],
            )
            for name in (VISION, DECODER)
        }
        names = layers.names()
        at = names.index(TLM) + 1
        self.steps = [REFERENCE, *names[:at], EMBEDDING, *names[at:]]
        assert BEFORE not in self.graphs[VISION].parts, "vision has nodes before its first layer, which nobody runs"
        self.gate = Gate(spec, "the written graph in ONNX Runtime against Hugging Face")

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        for graph in self.graphs.values():
            graph.data.close()

    def run(self, progress: Progress) -> None:
        """What is left to do. GateError where the graphs are not what Hugging Face says."""
        total = len(self.steps) * 100
        with torch.inference_mode():
            for number, name in enumerate(self.steps):
                if self.work.done(name):
                    continue

                def tick(share: float, number: int = number, name: str = name) -> None:
                    progress(number * 100 + round(100 * min(share, 1.0)), total, name)

                tick(0)
                before = {graph.name: set(graph.data.entries) for graph in self.graphs.values()}
                self.gate.figures.clear()
                facts, values = self._step(name, grouped(self.work.values), tick)
                if self.gate.figures:
                    facts["equality"] = {output: dict(figures) for output, figures in self.gate.figures.items()}
                tensors = {}
                for graph in self.graphs.values():
                    graph.data.flush()
                    new = graph.data.entries.keys() - before[graph.name]
                    tensors[graph.name] = {n: e for n, e in graph.data.entries.items() if n in new}
                self.work.finish(Line(name, tensors, facts), flattened(values))
        progress(total, total, "written")

    def models(self) -> dict[str, onnx.ModelProto]:
        """Both graphs, whole; their weights lie in the data files."""
        return {
            name: written_graph(graph.skeleton, graph.data, self.chosen(graph), *self.measured(), graph.half)
            for name, graph in self.graphs.items()
        }

    def measured(self) -> tuple[dict[str, float], dict[str, Split]]:
        """Ranges by activation and outliers by layer, of all layers that are done."""
        ranges: dict[str, float] = {}
        splits: dict[str, Split] = {}
        for line in self.work.lines:
            ranges |= line.facts.get("ranges", {})
            splits |= splits_from(line.facts)
        return ranges, {name: split for name, split in splits.items() if name not in self.kept()}

    def kept(self) -> dict[str, str]:
        """Layer -> why it is not INT8."""
        if self.int8 is None:
            return {}
        found = dict(self.int8.kept)
        for line in self.work.lines:
            found |= line.facts.get("kept", {})
        return found

    def chosen(self, graph: Graph) -> list[Linear]:
        kept = self.kept()
        return [] if self.int8 is None else [linear for linear in graph.linears if linear.name not in kept]

    def facts(self, key: str) -> list[Any]:
        """What the layers left under `key`, in order."""
        return [line.facts[key] for line in self.work.lines if key in line.facts]

    def equality(self) -> dict[str, dict[str, float]]:
        """Worst figures of the FP32 graphs in ONNX Runtime against Hugging Face."""
        return worst_equality(self.facts("equality"))

    def compared(self) -> dict[str, float]:
        """INT8 against float on the held-out samples."""
        assert self.int8 is not None
        [vision], [logits] = self.facts("vision_int8"), self.facts("logits_int8")
        return int8_figures(vision, logits, len(self.int8.held_out))

    # One step ----------------------------------------------------------------------------------------------------

    def _step(self, name: str, values: dict[str, Values], tick: Callable[[float], None]) -> tuple[dict[str, Any], Any]:
        if name == REFERENCE:
            return {}, self._reference(tick)
        if name == EMBEDDING:
            return self._embedding(values, tick)
        graph = self.graphs[DECODER if name.startswith("decoder.") else VISION]
        layer = self.layers.load(name)
        done = Calibrated()
        kept: dict[str, str] = {}
        seen: dict[str, Values] = {}
        if self.int8 is not None:
            able = [a for a in graph.linears if a.name in layer.linears()]
            if name == TLM and not self.int8.anchored:
                kept = {a.name: NO_ANCHORS for a in able}
            else:
                done = calibrated(layer, able, self.int8.recipe, lambda: self._tiles(layer, values, seen, tick))
                kept = {a.name: ALL_ZERO for a in able if done.ranges[a.activation] == 0}
            kept = {layer_name: why for layer_name, why in kept.items() if layer_name not in self.int8.kept}
        facts: dict[str, Any] = msgspec.to_builtins({"kept": kept, **done.record()})
        self._keep_folds(name, layer)
        tensors = numpy_tensors(layer.tensors())
        out: dict[str, Values] = {key: value for key, value in values.items() if key == "hf"}
        part = graph.parts[name]
        if self.int8 is None:
            self._write(graph, part, tensors)
            runner = Runner(self._model(graph, part, part.nodes), self.work.folder)
            out["ort"] = self._proven(name, runner, values, layer)
            return facts, out
        out["ort"] = self._proven(name, self._float_runner(graph, part, tensors), values, layer)
        chosen = [a for a in graph.linears if a.name in layer.linears() and a.name not in self.int8.kept | kept]
        splits = {a.name: done.splits[a.name] for a in chosen if a.name in done.splits}
        nodes = written_part(part.nodes, tensors, graph.data, chosen, done.ranges, splits)
        graph.data.flush()
        runner = Runner(self._model(graph, part, nodes), self.work.folder)
        del tensors
        for index, asked in enumerate(self._asked()):
            key = f"float|{index}"
            out[key] = seen[key] if key in seen else self._float(layer, asked, values[key])
        for index, asked in enumerate(self.int8.held_out):
            floats = f"float|{len(self.int8.tiles) + index}"
            out[f"int8|{index}"] = self._int8(
                name, runner, values[f"int8|{index}"], asked, facts, values[floats], out[floats], layer
            )
        if name == TLM:  # what is too far off is told before the decoder is begun
            figures = vision_figures(facts["vision_int8"]) | {"images": len(self.int8.held_out)}
            check_figures(figures, self.int8.recipe, "the vision graph", "[keep] keeps layers in float")
        return facts, out

    def _keep_folds(self, name: str, layer: Layer) -> None:
        """SmoothQuant's factors at linears with branches, for adapters that are added later."""
        stem = f"{name}."
        linears = ((f"{stem}{p}", m) for p, m in layer.graph.named_modules() if isinstance(m, AdaptedLinear))
        folds = folds_of(linears)
        if folds:
            np.savez(self.work.root / f"folds-{name}.npz", allow_pickle=False, **folds)

    def folds(self) -> dict[str, Array]:
        """Those of all layers that are done."""
        found: dict[str, Array] = {}
        for line in self.work.lines:
            path = self.work.root / f"folds-{line.name}.npz"
            if path.is_file():
                with np.load(path) as stored:
                    found |= dict(stored)
        return found

    def _write(self, graph: Graph, part: Part, tensors: dict[str, Array]) -> None:
        """In float. A head that is tied to the embedding is there already."""
        read = {name for node in part.nodes for name in node.input}
        for name in [n for n in tensors if n in read]:
            if name == HEAD_WEIGHT and self.layers.tied:
                graph.data.alias(name, EMBEDDING_TABLE)
            else:
                graph.data.put(name, tensors[name])
        graph.data.flush()

    def _model(self, graph: Graph, part: Part, nodes: Iterable[onnx.NodeProto]) -> onnx.ModelProto:
        """A part whose constants are in the data file."""
        nodes = list(nodes)
        constants = graph.data.protos(dict.fromkeys(name for node in nodes for name in node.input))
        return model_of(part, nodes, constants, graph.types, graph.skeleton)

    def _asked(self) -> list[Asked]:
        return [] if self.int8 is None else [*self.int8.tiles, *self.int8.held_out]

    def _reference(self, tick: Callable[[float], None]) -> dict[str, Values]:
        total = self.layers.config.vision_config.depth + self.layers.config.text_config.num_hidden_layers
        done = iter(range(1, total + 1))
        given = self.proof
        tokens, logits = reference(
            self.layers,
            torch.from_numpy(given.vision["pixels"]),
            torch.from_numpy(given.input_ids),
            STEPS + 1,
            lambda: tick(next(done) / total),
        )
        out: dict[str, Values] = {"hf": {"visual": tokens.numpy(), "logits": logits.numpy()}}
        out["ort"] = dict(given.vision)
        for index, asked in enumerate(self._asked()):
            out[f"float|{index}"] = {"hidden": asked.feeds[-1]["pixels"]}
        for index, asked in enumerate(self.int8.held_out if self.int8 else []):
            out[f"int8|{index}"] = {"pixels": asked.feeds[-1]["pixels"]}
        return out

    def _embedding(self, values: dict[str, Values], tick: Callable[[float], None]) -> tuple[dict[str, Any], Any]:
        """The table is written, and what comes before the first decoder layer is run for every sample."""
        graph, weights = self.graphs[DECODER], self.layers.weights
        write_table(graph, weights, tick)
        part = graph.parts[BEFORE]
        out: dict[str, Values] = {"hf": values["hf"]}
        # The rows of this text stand for the table, and the ids are places in it: 2 GB less at 7B.
        ids, place = np.unique(self.proof.input_ids, return_inverse=True)
        rows = {EMBEDDING_TABLE: embedding_rows(weights, torch.from_numpy(ids)).numpy()}
        given = self.proof.input_ids, self.proof.visual_index, self.proof.position_ids, values["ort"]["visual_tokens"]
        feed = self._text_feed(*given) | {"input_ids": place.reshape(1, -1).astype(np.int32)}
        out["ort"] = self._next(EMBEDDING, feed, self._float_runner(graph, part, rows))
        if self.int8 is None:
            return {}, out
        for index, asked in enumerate(self._asked()):
            out[f"float|{index}"] = {"hidden": embedded(weights, asked, values[f"float|{index}"]["hidden"])}
        whole = Runner(self._model(graph, part, in_half(part, graph.half)), self.work.folder)
        for index, asked in enumerate(self.int8.held_out):
            visual = values[f"int8|{index}"]["visual_tokens"]
            feed = self._text_feed(asked.input_ids, asked.visual_index, asked.positions, visual)
            out[f"int8|{index}"] = self._next(EMBEDDING, feed, whole)
        return {}, out

    def _text_feed(self, input_ids: Array, visual_index: Array, positions: Array, visual: Array) -> Values:
        """Inputs of the decoder, with an empty cache."""
        heads, width = self.decoder.kv_shape
        past = np.zeros((0, len(self.decoder.layers), 2, 1, heads, width), np.float32)
        names = ("input_ids", "visual_index", "position_ids", "visual_tokens", "past")
        return dict(zip(names, (input_ids, visual_index, positions, visual, past), strict=True))

    # Float, in PyTorch -------------------------------------------------------------------------------------------

    def _tiles(
        self, layer: Layer, values: dict[str, Values], seen: dict[str, Values], tick: Callable[[float], None]
    ) -> None:
        """Every calibration sample through the layer; `seen` gets what it gives."""
        assert self.int8 is not None
        for index, asked in enumerate(self.int8.tiles):
            seen[f"float|{index}"] = self._float(layer, asked, values[f"float|{index}"], plain=True)
            tick((index + 1) / (2 * len(self.int8.tiles)))

    def _float(self, layer: Layer, asked: Asked, given: Values, *, plain: bool = False) -> Values:
        with_text = layer.name.startswith("decoder.layers.")
        text = text_of(self.decoder, asked) if with_text else ()
        return float_values(layer, asked, given, text, plain=plain)

    # The written graphs, in ONNX Runtime -------------------------------------------------------------------------

    def _float_runner(self, graph: Graph, part: Part, tensors: dict[str, Array]) -> Runner:
        names = [n for n in tensors if any(n in node.input for node in part.nodes)]
        constants = held_elsewhere(names, tensors)
        model = model_of(part, part.nodes, constants, graph.types, graph.skeleton)
        return Runner(model, self.work.folder, {n: torch.from_numpy(tensors[n]).contiguous().numpy() for n in names})

    def _proven(self, name: str, runner: Runner, values: dict[str, Values], layer: Layer) -> Values:
        """The proof's values behind the part; compared with Hugging Face where a graph ends."""
        given, hugging_face = values["ort"], values["hf"]
        if name == TLM:
            masked = given | {"anchor_mask": np.zeros_like(given["anchor_mask"])}
            plain = runner(masked)["visual_tokens"]
            self.gate.check("vision.visual_tokens", hugging_face["visual"], plain[0])
            tokens = torch.from_numpy(given[next(n for n in runner.inputs if n not in self.proof.vision)])
            exact = layer.graph(tokens, *anchors_of(given)).numpy()
            self.gate.check("vision.modulated_tokens", exact, runner(given)["visual_tokens"])
            return {"visual_tokens": plain}
        if name == HEAD:
            [hidden] = (given[n] for n in runner.inputs)
            logits = runner({runner.inputs[0]: hidden[0, -STEPS - 1 :][:, None]})["logits"]
            for mine, theirs in zip(logits, hugging_face["logits"], strict=True):
                self.gate.check("decoder.logits", theirs, mine)
                self.gate.check_tokens(theirs[None], mine[None].argmax(-1))
            return {}
        return self._next(name, given, runner)

    def _next(self, name: str, given: Values, runner: Runner) -> Values:
        graph = self.graphs[DECODER if name.startswith("decoder.") else VISION]
        needed = graph.needed_after(BEFORE if name == EMBEDDING else name)
        return {key: value for key, value in (given | runner(given)).items() if key in needed}

    def _int8(
        self, name: str, runner: Runner, given: Values, asked: Asked, facts: dict[str, Any],
        before: Values, after: Values, layer: Layer,
    ) -> Values:  # fmt: skip
        """A held-out sample's values behind the INT8 part; at the end of a graph, how far they are from float."""
        if name == TLM:
            tokens = next(n for n in runner.inputs if n not in self.proof.vision)
            for feed in asked.feeds:
                visual = runner({tokens: given[tokens], **feed})["visual_tokens"]
                exact = layer.graph(torch.from_numpy(before["hidden"]), *anchors_of(feed)).numpy()
                facts.setdefault("vision_int8", []).append([cosine(visual, exact), norm_ratio(visual, exact)])
            return {"visual_tokens": visual}
        if name == HEAD:
            hidden = given[runner.inputs[0]][0, asked.answer][:, None]
            for a, b in zip(runner({runner.inputs[0]: hidden})["logits"], after["logits"], strict=True):
                row = [cosine(a, b), norm_ratio(a, b), divergence(b, a), int(a.argmax()) == int(b.argmax())]
                facts.setdefault("logits_int8", []).append(row)
            return {}
        return self._next(name, given, runner)


def _bands(layers: Layers) -> int:
    from fusar_edge.anchors.codes import BANDS

    return BANDS if layers.basis is None else layers.basis.rank

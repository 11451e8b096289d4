"""What each layer costs in INT8: that layer alone in INT8, and all layers but that one.

Every trial writes the pair of graphs with some layers in INT8, runs it on the held-out tiles and compares it with FP32.
Ranges are measured once. A trial's figures are appended to a file as soon as they are known, under the layers that were
in INT8; so a run that was killed goes on, and the search that follows pays for nothing twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import stage_checks
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.measured import MeasuredGraph
from fusar_edge.errors import OutputExistsError
from fusar_edge.manifest import sha256_text
from fusar_edge.runtime.bundle import ADAPTERS
from fusar_edge.runtime.ort import open_ort
from fusar_edge.specs import GateSpec

Figures = dict[str, float]
Progress = Callable[[int, int, str], None]
STATE = "trials.jsonl"


@dataclass(frozen=True)
class LayerCost:
    """One layer."""

    layer: str
    graph: str
    alone: Figures
    """Of the pair with this layer alone in INT8."""
    without: Figures
    """Of the pair with every layer but this one in INT8."""
    share_alone: float
    """Of the gate's allowances, the mean share that the layer alone uses up."""
    share_saved: float
    """What keeping it out of INT8 gives back of what all layers together use up."""


class Trials:
    """Pairs of graphs with any layers in INT8, each tried once."""

    def __init__(
        self,
        graphs: GraphFolder,
        found: Mapping[str, MeasuredGraph],
        reference: Reference,
        folder: Path,
        identity: str,
    ) -> None:
        """`folder` keeps what was tried. OutputExistsError where it is that of another recipe, data or graphs."""
        self.graphs, self.found, self.reference, self.folder = graphs, found, reference, folder
        self.able = [layer.name for graph in found.values() for layer in graph.chosen()]
        self.known = self._open(identity)

    def _open(self, identity: str) -> dict[str, Figures]:
        state = self.folder / STATE
        first, *lines = (state.read_text() if state.is_file() else "").splitlines() or [""]
        started = _row(first)
        if started is not None and started != {"identity": identity}:
            raise OutputExistsError(
                f"{self.folder} holds an unfinished search with another recipe, data, graphs or version: give the same "
                "arguments to go on with it, another --out, or remove that folder"
            )
        rows = [row for row in map(_row, lines) if row]  # the last one may have been cut off by a kill
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = "".join(json.dumps(row) + "\n" for row in ({"identity": identity}, *rows))
        work = state.with_suffix(".new")
        work.write_text(kept, encoding="utf-8")
        work.replace(state)
        return {row["key"]: row["figures"] for row in rows}

    def figures(self, int8: Collection[str]) -> Figures:
        """Of the pair with these layers in INT8, against FP32."""
        key = sha256_text("\n".join(sorted(int8)))
        if key not in self.known:
            self.known[key] = self._run(set(int8))
            with open(self.folder / STATE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "figures": self.known[key], "layers": len(int8)}) + "\n")
        return self.known[key]

    def _run(self, int8: set[str]) -> Figures:
        work = self.folder / "pair"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if (adapters := self.graphs.path / ADAPTERS).is_dir():
            (work / ADAPTERS).symlink_to(adapters.resolve())
        try:
            for name, graph in self.found.items():
                layers = [layer for layer in graph.layers if layer.name in int8]
                if layers:
                    graph.write(work / name, layers)
                else:
                    for file in self.graphs.path.glob(f"{name}*"):
                        (work / file.name).symlink_to(file.resolve())
            return self.reference.compared(open_ort(self.graphs.bundle(work)))
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _row(line: str) -> Any:
    """None for a line that is not whole."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def used(figures: Figures, gate: GateSpec) -> list[float]:
    """Share of each of the gate's allowances that is used up; the gate holds where none is above 1."""
    smallest = 1e-9  # an allowance of nothing at all
    return [
        (1 - c.value) / max(1 - c.bound, smallest) if c.least else c.value / max(c.bound, smallest)
        for c in stage_checks(figures, gate)
    ]


def holds(figures: Figures, gate: GateSpec) -> bool:
    return all(check.holds for check in stage_checks(figures, gate))


def sensitivities(trials: Trials, gate: GateSpec, progress: Progress) -> list[LayerCost]:
    """Of every layer that would become INT8, in the order of the graphs."""
    everything = trials.able
    whole = mean(used(trials.figures(everything), gate))
    rows = []
    for number, layer in enumerate(everything, 1):
        alone = trials.figures([layer])
        without = trials.figures([name for name in everything if name != layer])
        graph = next(name for name, graph in trials.found.items() if any(a.name == layer for a in graph.layers))
        saved = whole - mean(used(without, gate))
        rows.append(LayerCost(layer, graph, alone, without, mean(used(alone, gate)), saved))
        progress(number, len(everything), layer)
    return rows


def mean(values: list[float]) -> float:
    return sum(values) / len(values)

"""The fewest layers to keep out of INT8 for which the recipe's gate holds.

What a layer gives back when it alone stays in float orders the layers. The shortest beginning of that order for which
the gate holds is found by halving (more layers in float are taken to be no worse), and then each of those layers is put
back into INT8 where the gate holds without it too. The gate's stages are asked on the held-out tiles: the task metrics
of `build` are the proof on data that no choice was made with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fusar_edge.calib.compare import Reference
from fusar_edge.calib.gate import stage_checks
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.calib.measured import MeasuredGraph
from fusar_edge.calib.search.report import REPORT, search_html
from fusar_edge.calib.search.sensitivity import LayerCost, Progress, Trials, holds, mean, sensitivities, used
from fusar_edge.errors import GateError
from fusar_edge.specs import CalibRecipe, GateSpec

FIGURES = "sensitivity.json"


def search_folder(out: Path) -> Path:
    """Of an unfinished search."""
    return out.with_name(f"{out.name}.search")


def searched(
    graphs: GraphFolder,
    recipe: CalibRecipe,
    found: Mapping[str, MeasuredGraph],
    reference: Reference,
    identity: str,
    out: Path,
    work: Path,
    progress: Progress,
) -> dict[str, str]:
    """Layer -> why it is kept, beside what the recipe keeps; sensitivity.json and .html are written into `work`.

    `search_folder` keeps what was tried; the caller removes it once the output is there. GateError where no choice of
    layers holds.
    """
    trials = Trials(graphs, found, reference, search_folder(out), identity)
    rows = sensitivities(trials, recipe.gate, progress)
    kept = fewest_kept(trials, rows, recipe.gate, progress)
    reasons = {row.layer: _reason(row, trials, kept, recipe.gate) for row in rows if row.layer in kept}
    by_recipe = {name: why for graph in found.values() for name, why in graph.kept.items()}
    whole = trials.figures(trials.able)
    final = trials.figures([name for name in trials.able if name not in kept])
    record = {"all_in_int8": whole, "chosen": final, "kept_by_recipe": by_recipe, "kept_by_search": reasons}
    record["layers"] = [asdict(row) for row in rows]
    (work / FIGURES).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (work / REPORT).write_text(search_html(recipe, rows, by_recipe, reasons, whole, final), encoding="utf-8")
    return reasons


def fewest_kept(trials: Trials, rows: list[LayerCost], gate: GateSpec, progress: Progress) -> list[str]:
    """Layers that stay in float. GateError where the gate does not hold with all of them in float."""
    order = [row.layer for row in sorted(rows, key=lambda row: (-row.share_saved, -row.share_alone))]

    def gate_holds(kept: list[str]) -> bool:
        return holds(trials.figures([name for name in trials.able if name not in kept]), gate)

    if gate_holds([]):
        return []
    low, high = 0, len(order)  # the gate does not hold with `low` layers in float; with `high` of them it has to
    if not gate_holds(order):
        failed = [str(c) for c in stage_checks(trials.figures([]), gate) if not c.holds]
        raise GateError(f"no choice of layers holds the recipe's [gate]: with every layer in FP32, {'; '.join(failed)}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gate_holds(order[:middle]) else (middle, high)
        progress(len(order) - (high - low), len(order), "fewest layers")
    kept = order[:high]
    for number, layer in enumerate(reversed(order[: high - 1]), 1):
        less = [name for name in kept if name != layer]
        if gate_holds(less):
            kept = less
        progress(number, high, f"again without {layer}")
    return kept


def _reason(row: LayerCost, trials: Trials, kept: list[str], gate: GateSpec) -> str:
    """Measured: what happens with this layer in INT8 too."""
    others = [name for name in kept if name != row.layer]
    figures = trials.figures([name for name in trials.able if name not in others])
    failed = [str(check) for check in stage_checks(figures, gate) if not check.holds]
    alone = f"alone in INT8 it uses {row.share_alone:.0%} of the gate's allowances"
    if not failed:  # the halving took the order to be the truth
        return f"{alone}, {mean(used(figures, gate)):.0%} with all that are chosen"
    return f"in INT8 too the gate fails: {'; '.join(failed)}; {alone}"

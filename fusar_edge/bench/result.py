"""What one run found: `result.json`. Its figures follow from observations.jsonl, power.jsonl and conditions.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.bench.compare import Comparison
from fusar_edge.bench.conditions import Conditions
from fusar_edge.bench.observations import Observation, measured
from fusar_edge.bench.power.energy import Energy
from fusar_edge.bench.roofline import Roofline
from fusar_edge.bench.samples import Interval, quantile_interval
from fusar_edge.bench.scenarios import Verdict
from fusar_edge.bench.timing import PARTS, REFERENCE
from fusar_edge.errors import InputError
from fusar_edge.manifest import read_manifest, verify_files

FILENAME = "result.json"
FORMAT = 1
QUANTILES = (0.5, 0.9, 0.99)
SHARED = ("vision", "tile")
"""Parts of which each tile of a batch has an equal share."""


class PartFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Latency of one part over all tiles."""

    scenario: str
    part: str
    task: str = ""
    """Parts of an answer are given for all tasks together ("") and for each."""
    p50: Interval
    p90: Interval
    p99: Interval


class BenchResult(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    format: int = FORMAT
    quick: bool = False
    command: str = ""
    """That makes such a run again."""
    workload: dict[str, Any] = {}
    conditions: Conditions
    verdicts: tuple[Verdict, ...] = ()
    parts: tuple[PartFigures, ...] = ()
    energy: Energy | None = None
    energy_missing: str = ""
    """Why there is none."""
    comparison: Comparison | None = None
    roofline: Roofline = Roofline()
    accuracy: dict[str, Any] = {}
    """Task metrics on --data, as `fusar-edge eval` gives them; empty without it."""

    @property
    def publishable(self) -> bool:
        return self.conditions.publishable


def part_figures(observations: Sequence[Observation], scenarios: Iterable[str]) -> tuple[PartFigures, ...]:
    """Every part of every scenario, in the order of the work; parts of answers also by task.

    Tiles of a batch that have an equal share of one time are one observation.
    """
    rows = []
    for scenario in scenarios:
        for part in (*PARTS, REFERENCE):
            chosen = list(measured(observations, scenario, part))
            if part in SHARED:
                chosen = [one for one, before in zip(chosen, [None, *chosen], strict=False) if not _same(one, before)]
            tasks = dict.fromkeys(one.unit_id.partition("/")[2] for one in chosen)
            groups = {"": chosen}
            if any(tasks):
                groups |= {task: [o for o in chosen if o.unit_id.partition("/")[2] == task] for task in tasks if task}
            rows += [_figures(scenario, part, task, group) for task, group in groups.items() if group]
    return tuple(rows)


def _same(one: Observation, before: Observation | None) -> bool:
    return before is not None and one.ms == before.ms


def _figures(scenario: str, part: str, task: str, chosen: Sequence[Observation]) -> PartFigures:
    times, units = [one.ms for one in chosen], [one.unit_id for one in chosen]
    p50, p90, p99 = (quantile_interval(times, q, units=units) for q in QUANTILES)
    return PartFigures(scenario=scenario, part=part, task=task, p50=p50, p90=p90, p99=p99)


def write_result(path: Path, result: BenchResult) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_result(folder: Path) -> BenchResult:
    """Of a folder that `bench` made, or of result.json itself. InputError names the file."""
    path = folder / FILENAME if folder.is_dir() else folder
    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchResult)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}); give a folder of `fusar-edge bench`") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: {problem}; run the benchmark again with this fusar-edge") from None


def check_seal(folder: Path) -> None:
    """InputError where a file of a run is missing, or is not the one that `bench` wrote."""
    verify_files(folder, read_manifest(folder))


def differences(before: BenchResult, after: BenchResult) -> list[str]:
    """What was not the same work on the same machine: such times say nothing of the code."""

    def facts(run: BenchResult) -> dict[str, Any]:
        c, w = run.conditions, run.workload
        named = {name: w.get(name) for name in ("scene_sha256", "tasks", "label", "tiles")}
        return {**named, "device": c.device, "threads": c.threads, "power mode": c.power_mode, "quick": run.quick}

    first, second = facts(before), facts(after)
    return [f"{name} {first[name]} and {second[name]}" for name in first if first[name] != second[name]]

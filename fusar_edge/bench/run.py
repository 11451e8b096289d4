"""`fusar-edge bench BUNDLE`: measure, judge, report; one folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.bench import conditions
from fusar_edge.bench.compare import ANSWERS, Comparison, compare
from fusar_edge.bench.conditions import Conditions, ConditionsWatch
from fusar_edge.bench.hands import tiles_of
from fusar_edge.bench.observations import FILENAME as OBSERVATIONS
from fusar_edge.bench.observations import Observation, ObservationWriter
from fusar_edge.bench.peer import peer_names
from fusar_edge.bench.power import energy
from fusar_edge.bench.reference import Reference
from fusar_edge.bench.result import FILENAME as RESULT
from fusar_edge.bench.result import BenchResult, part_figures, write_result
from fusar_edge.bench.roofline import roofline
from fusar_edge.bench.scenarios import SCENARIOS, Bench, Verdict, rule_of, run_scenario
from fusar_edge.bench.station import can_serve, open_station
from fusar_edge.bench.timing import Stopwatch
from fusar_edge.bench.workload import QUICK_SIZE, SIZE, Workload, open_workload, simulated_workload
from fusar_edge.data.tasks import TASKS
from fusar_edge.errors import InputError, MissingExtraError
from fusar_edge.manifest import FILENAME as MANIFEST
from fusar_edge.manifest import (
    Manifest,
    check_output,
    folder_hashes,
    output_file,
    output_folder,
    package_versions,
    sha256_file,
    write_manifest,
)
from fusar_edge.runtime.bundle import Bundle, open_bundle
from fusar_edge.runtime.session import Session

STAGE = "bench"
IDLE_S = 3.0
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """What was asked for."""

    bundle: str | Path
    scene: Path | None = None
    """None: a simulated one."""
    anchors: Path | None = None
    tasks: tuple[str, ...] = TASKS
    scenarios: tuple[str, ...] = SCENARIOS
    against: tuple[str, ...] = ()
    data: Path | None = None
    """Triplet manifest for the task metrics."""
    power: str = "auto"
    threads: int = 0
    seconds: float = 120.0
    """Longest measurement of a scenario, and of the comparison."""
    quick: bool = False


def bench(
    plan: Plan,
    out: Path,
    *,
    json_out: Path | None = None,
    command: str = "",
    force: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Run `plan` into the new folder `out`; everything that can be refused is refused before the first measurement."""
    check_output(out, force)
    if json_out is not None:
        check_output(json_out, force)
    _check(plan)
    bundle = open_bundle(plan.bundle)
    with output_folder(out, force=force) as work:
        result = _measured(plan, bundle, work, command, progress)
        write_result(work / RESULT, result)
        _write_json(work / conditions.FILENAME, result.conditions)
        write_report(work, result)
        write_manifest(work, _manifest(plan, bundle, work, result))
    if json_out is not None:
        with output_file(json_out, force=force) as path:
            write_result(path, result)
    return result


def _check(plan: Plan) -> None:
    unknown = [name for name in plan.scenarios if name not in SCENARIOS]
    if unknown or not plan.scenarios:
        raise InputError(f"--scenario {', '.join(unknown) or '(none)'}: allowed are {', '.join(SCENARIOS)}")
    if plan.against:
        strange = [name for name in plan.against if name not in peer_names()]
        if strange:
            raise InputError(f"--against {', '.join(strange)}: allowed are {', '.join(peer_names())}")
    if plan.power not in energy.CHOICES and not Path(plan.power).is_file():
        raise InputError(f"--power {plan.power}: allowed are {', '.join(energy.CHOICES)}, or a log of tegrastats")
    missing = [name for name in ("matplotlib", "psutil", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"bench needs {', '.join(missing)}: pip install 'fusar-edge[bench]'")


def _measured(plan: Plan, bundle: Bundle, work: Path, command: str, progress: Progress | None) -> BenchResult:
    source, missing = (None, "") if Path(plan.power).is_file() else energy.open_source(plan.power)
    sampler = energy.Sampler(source) if source is not None else None
    with contextlib.ExitStack() as stack:
        # Files of the run that are no part of its result: the scene, the tiles' GeoJSON, conversions of peers.
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusar-edge-bench-")))
        session = Session(bundle, plan.threads)
        stack.callback(session.close)
        workload = stack.enter_context(_workload(plan, session, scratch))
        writer = stack.enter_context(ObservationWriter(work / OBSERVATIONS))
        watch = stack.enter_context(ConditionsWatch(bundle, plan.threads))
        with sampler if sampler is not None else contextlib.nullcontext():
            idle = _rest(sampler is not None, plan.quick)
            verdicts = _scenarios(plan, session, workload, writer, progress)
        comparison = _comparison(plan, bundle, workload, writer, scratch, work, progress)
    found = watch.finish(_reasons(plan, verdicts, comparison))
    spent, missing = _energy(plan, sampler, idle, writer.observations, work, missing)
    return BenchResult(
        quick=plan.quick,
        command=command,
        workload=workload.facts,
        conditions=found,
        verdicts=tuple(verdicts),
        parts=part_figures(writer.observations, plan.scenarios),
        energy=spent,
        energy_missing=missing,
        comparison=comparison,
        roofline=roofline(bundle, writer.observations, found.device, found.power_mode),
        accuracy=_accuracy(plan, progress),
    )


def _scenarios(
    plan: Plan, session: Session, workload: Workload, writer: ObservationWriter, progress: Progress | None
) -> list[Verdict]:
    station = None
    if "live" in plan.scenarios and can_serve():
        folder = workload.out.parent / "service"
        station = partial(open_station, plan.bundle, workload, folder, plan.threads, plan.anchors)
    made = Bench(Stopwatch(session, workload), writer, Reference(), progress, station)
    return [
        run_scenario(made, name, rule_of(name, quick=plan.quick, seconds=plan.seconds))
        for name in dict.fromkeys(plan.scenarios)
    ]


def _comparison(
    plan: Plan,
    bundle: Bundle,
    workload: Workload,
    writer: ObservationWriter,
    scratch: Path,
    work: Path,
    progress: Progress | None,
) -> Comparison | None:
    if not plan.against:
        return None
    seconds = min(20.0, plan.seconds) if plan.quick else plan.seconds
    return compare(
        bundle,
        tiles_of(workload, bundle),
        plan.against,
        writer,
        threads=plan.threads or conditions.processors(),
        work=scratch,
        seconds=seconds,
        progress=progress,
        answers=work / ANSWERS,
    )


def _reasons(plan: Plan, verdicts: Sequence[Verdict], comparison: Comparison | None) -> list[str]:
    found = ["--quick: a look, not a measurement"] if plan.quick else []
    found += [f"{v.scenario}: too few observations in the time given ({v.rule})" for v in verdicts if not v.met]
    if comparison is not None and not comparison.met:
        found.append("comparison: ratios are less certain than wanted in the time given")
    return found


def _rest(measuring: bool, quick: bool) -> tuple[float, float] | None:
    """What the machine draws when it rests."""
    if not measuring:
        return None
    start = time.time()
    time.sleep(IDLE_S / (3 if quick else 1))
    return start, time.time()


def _energy(
    plan: Plan,
    sampler: energy.Sampler | None,
    idle: tuple[float, float] | None,
    observations: Sequence[Observation],
    work: Path,
    missing: str,
) -> tuple[energy.Energy | None, str]:
    if Path(plan.power).is_file():
        shutil.copyfile(plan.power, work / energy.LOG)
        trace = energy.trace_from_log(Path(plan.power))
    elif sampler is not None:
        sampler.write(work / energy.FILENAME)
        trace = sampler.trace()
        missing = sampler.problem
    else:
        return None, missing
    scenario = "single" if "single" in plan.scenarios else plan.scenarios[0]
    figures = energy.energy_figures(trace, observations, scenario=scenario, idle=idle)
    if figures.tile_j is None:
        return None, missing or f"{trace.source}: no reading covers a tile; was it recorded during this run?"
    return figures, missing


def _accuracy(plan: Plan, progress: Progress | None) -> dict[str, Any]:
    if plan.data is None:
        return {}
    from fusar_edge.eval.run import evaluate

    return evaluate(str(plan.bundle), plan.data, tasks=list(plan.tasks), threads=plan.threads, progress=progress)


@contextlib.contextmanager
def _workload(plan: Plan, session: Session, scratch: Path) -> Iterator[Workload]:
    """The given scene, or a simulated one, of which every tile's first ship is what `classify` asks about."""
    path, values, boxes = plan.scene, "auto", None
    if path is None:
        path, boxes = simulated_workload(scratch, session.bundle, QUICK_SIZE if plan.quick else SIZE)
        values = "power"
    out = scratch / "tile.geojson"
    with open_workload(
        path, plan.tasks, session, out=out, anchors=plan.anchors, boxes=boxes, values=values
    ) as workload:
        yield workload


def write_report(folder: Path, result: BenchResult) -> None:
    """report.html and report.md beside the raw numbers."""
    from fusar_edge.bench.report import html_from_run
    from fusar_edge.bench.table import markdown_from_result

    (folder / "report.html").write_text(html_from_run(folder, result), encoding="utf-8")
    (folder / "report.md").write_text(markdown_from_result(result), encoding="utf-8")


def _manifest(plan: Plan, bundle: Bundle, work: Path, result: BenchResult) -> Manifest:
    figures = {f"{v.scenario}: {v.metric} ({v.unit})": v.figure.value for v in result.verdicts}
    return Manifest(
        stage=STAGE,
        inputs=_inputs(plan, bundle, result),
        files=folder_hashes(work),
        figures={"publishable": result.publishable, **figures},
        settings={"command": result.command, "quick": plan.quick, "workload": result.workload},
        packages=package_versions("numpy", "onnxruntime", "rasterio", "matplotlib", "psutil"),
    )


def _inputs(plan: Plan, bundle: Bundle, result: BenchResult) -> dict[str, str]:
    found = {"bundle": bundle.sha256, "scene": str(result.workload.get("scene_sha256", ""))}
    if plan.data is not None:
        found["data"] = sha256_file(plan.data)
    if plan.anchors is not None:
        found["anchors"] = sha256_file(plan.anchors / MANIFEST)
    return found


def _write_json(path: Path, value: Conditions) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")

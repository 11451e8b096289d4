"""Verb of the quality team: bench, with `bench diff` and `bench report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fusar_edge.commands.app import app
from fusar_edge.commands.console import Force, Out, Threads, bar, result, say
from fusar_edge.commands.device import Task
from fusar_edge.errors import GateError, InputError


class BundleFirst(TyperGroup):
    """A group whose first word may be a bundle: `bench default ...` is `bench run default ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    cls=BundleFirst,
    help="Latency, memory, energy and accuracy of a bundle on this machine: `fusar-edge bench BUNDLE --out DIR`.",
    epilog="Example: fusar-edge bench default --out bench-1",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(bench_app, name="bench")


@bench_app.command(epilog="Example: fusar-edge bench default --out bench-1 --against hf-eager --against ort-loop")
def run(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or `default`.")],
    out: Out,
    scene: Annotated[Path | None, typer.Option(help="Georeferenced SAR GeoTIFF. Default: a simulated scene.")] = None,
    anchors: Annotated[Path | None, typer.Option(help="AlphaEarth anchor table; none: plain Qwen2.5-VL.")] = None,
    task: Annotated[list[Task] | None, typer.Option(help="What to ask of every tile; repeat. Default: all.")] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="single, multi, offline, live; repeat. Default: all.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Run beside it: hf-eager, hf-compile, ort-loop, ort-loop-int8, llama.cpp, ours-grammar; repeat."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Triplet manifest: task metrics beside the speed.")] = None,
    power: Annotated[
        str, typer.Option(help="auto, none, tegrastats, ina, nvml, rapl, or a log of tegrastats.")
    ] = "auto",
    threads: Threads = 0,
    seconds: Annotated[float, typer.Option(min=1, help="Longest measurement of a scenario, in general.")] = 120.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in a minute; its numbers are not publishable.")
    ] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="File to write the result to as well.")] = None,
    force: Force = False,
) -> None:
    """Measure a bundle on this machine, part by part, and write raw numbers and a report."""
    from fusar_edge.bench.run import Plan, bench
    from fusar_edge.bench.scenarios import SCENARIOS
    from fusar_edge.bench.table import bounds, number
    from fusar_edge.data.tasks import TASKS

    plan = Plan(
        bundle=bundle,
        scene=scene,
        anchors=anchors,
        tasks=tuple(t.value for t in task) if task else TASKS,
        scenarios=tuple(scenario or SCENARIOS),
        against=tuple(against or ()),
        data=data,
        power=power,
        threads=threads,
        seconds=seconds,
        quick=quick,
    )
    command = shlex.join(["fusar-edge", *sys.argv[1:]])
    with bar("measuring") as step:
        found = bench(plan, out, json_out=json_out, command=command, force=force, progress=step)
    for v in found.verdicts:
        say(f"{v.scenario}: {v.metric} {number(v.figure.value)} {v.unit} ({bounds(v.figure)})")
    for reason in found.conditions.reasons:
        say(f"not publishable: {reason}")
    figures = {v.scenario: {"metric": v.metric, "value": v.figure.value, "unit": v.unit} for v in found.verdicts}
    result({"out": str(out), "publishable": found.publishable, "reasons": found.conditions.reasons, **figures})


@bench_app.command(epilog="Example: fusar-edge bench diff bench-1 bench-2")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of the run before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Folder of the run after.")],
    threshold: Annotated[float, typer.Option(help="Slower by more than this ratio is an alarm.")] = 1.05,
) -> None:
    """What got slower from A to B, with statistics; exit code 1 where something did, 2 where nothing can be judged."""
    from rich.console import Console
    from rich.table import Table

    from fusar_edge.bench.conditions import disturbances, read_conditions
    from fusar_edge.bench.diff import diff as compared
    from fusar_edge.bench.observations import read_observations
    from fusar_edge.bench.table import diff_rows

    _check_pair(before, after)
    known = {folder: conditions for folder in (before, after) if (conditions := read_conditions(folder))}
    disturbed = [f"{folder}: {what}" for folder, conditions in known.items() for what in disturbances(conditions)]
    found = compared(read_observations(before), read_observations(after), threshold, disturbed=disturbed)
    head, rows = diff_rows(found)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    Console(stderr=True).print(shown)
    if found.reference_ratio is not None:
        say(f"the machine itself (reference kernel): {found.reference_ratio:.3f}")
    for note in found.notes:
        say(note)
    for what in found.disturbed:
        say(f"not judged, {what}")
    result(
        {
            "alarm": found.alarm,
            "comparable": found.comparable,
            "slower": list(found.culprits),
            "threshold": threshold,
            "machine_ratio": found.reference_ratio,
            "ratios": {f"{c.scenario}: {c.part}": round(c.ratio, 4) for c in found.changes},
        }
    )
    if not found.comparable:
        raise InputError(
            "the runs cannot be judged, so this is no pass: leave the machine alone and run `fusar-edge bench` again"
        )
    if found.alarm:
        raise GateError(f"slower than {threshold:g} times {before}: {', '.join(found.culprits)}")


def _check_pair(before: Path, after: Path) -> None:
    """InputError where a run was changed after it was made, or both did not do the same work."""
    from fusar_edge.bench.result import FILENAME, check_seal, differences, read_result
    from fusar_edge.manifest import FILENAME as MANIFEST

    for folder in (before, after):
        if (folder / MANIFEST).is_file():
            check_seal(folder)
        else:
            say(f"{folder} has no {MANIFEST}: nothing vouches for its numbers")
    if all((folder / FILENAME).is_file() for folder in (before, after)):
        different = differences(read_result(before), read_result(after))
        if different:
            raise InputError(
                f"{before} and {after} did not do the same: {'; '.join(different)}. Run both with the same --scene, "
                "--task and --threads on the same machine"
            )


@bench_app.command(epilog="Example: fusar-edge bench report bench-1 --out report.html")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `bench` made.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    force: Force = False,
) -> None:
    """Make the report again from a run's raw numbers."""
    from fusar_edge.bench.report import write_html

    write_html(folder, out, force=force)
    result({"out": str(out)})

"""One HTML file that opens offline: what was measured, on what, how surely, and how each number can be made again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fusar_edge.bench import plots
from fusar_edge.bench.observations import Observation, measured, read_observations
from fusar_edge.bench.result import BenchResult, check_seal, read_result
from fusar_edge.bench.table import (
    accuracy_line,
    accuracy_rows,
    comparison_line,
    comparison_rows,
    energy_line,
    energy_rows,
    machine_line,
    number,
    part_rows,
    verdict_rows,
)
from fusar_edge.manifest import output_file
from fusar_edge.page import escaped, note, page, section, table

METHOD = """Times are wall time of one process (<code>time.perf_counter</code>). Quantiles: the sample's; their
intervals are those of order statistics for as many independent observations as the run is worth (autocorrelation).
Means: bootstrap, 2,000 draws; ratios: Student's t over rounds.
The warm-up, every tile once, is kept among the raw numbers and in no figure.
The raster's decoded blocks are dropped before each pass over the scene; the system's cache of the file is warm.
<code>ttft</code> counts from the question to the first token that the model chose: vision and prefix are the
tile's, once for all its questions. Times follow from <code>observations.jsonl</code> (scenario, part, unit, ms, Unix
time of its end), energy from those and <code>power.jsonl</code> (or <code>power.log</code>), agreement of candidates
from <code>answers.jsonl</code>; conditions, memory, limits of the roofline and task metrics were asked of the machine
and stand in <code>result.json</code>, all beside this file and sealed by <code>manifest.json</code>."""


def html_from_run(folder: Path, result: BenchResult | None = None) -> str:
    """The report of a folder that `bench` made. InputError names the file that cannot be read."""
    found = result or read_result(folder)
    return html_from_result(found, read_observations(folder))


def write_html(folder: Path, out: Path, *, force: bool = False) -> None:
    """`fusar-edge bench report DIR --out report.html`. InputError where a file of the folder was changed."""
    check_seal(folder)
    text = html_from_run(folder)
    with output_file(out, force=force) as path:
        path.write_text(text, encoding="utf-8")


def html_from_result(result: BenchResult, observations: list[Observation]) -> str:
    scenarios = [v.scenario for v in result.verdicts]
    parts = [
        f"<h1>fusar-edge bench: {escaped(result.conditions.bundle.get('name', ''))}</h1>",
        f'<p class="note">{escaped(machine_line(result))}</p>',
        _status(result),
        section("Scenarios", table(*verdict_rows(result)), note(accuracy_line(result)), _rules(result)),
        section("Latency", plots.latency_plot(observations, scenarios)),
        *(_scenario(result, observations, scenario) for scenario in scenarios),
        _comparison(result),
        _roofline(result),
        _energy(result),
        _accuracy(result),
        section("Conditions", _conditions(result)),
        section("How it was measured", f"<p>{METHOD}</p>", _again(result)),
    ]
    return page(f"fusar-edge bench {result.conditions.bundle.get('name', '')}", parts)


def _status(result: BenchResult) -> str:
    if result.publishable:
        return '<p class="good"><b>Publishable</b>: conditions are known and were steady.</p>'
    reasons = "".join(f"<li>{escaped(reason)}</li>" for reason in result.conditions.reasons)
    return f'<div class="bad"><b>Not publishable</b><ul>{reasons}</ul></div>'


def _rules(result: BenchResult) -> str:
    lines = []
    for v in result.verdicts:
        facts = "".join(f"; {name.replace('_', ' ')} {number(value)}" for name, value in v.facts.items())
        met = "met" if v.met else "not met"
        warm = f"{v.warm_up_queries} queries of warm-up left out"
        lines.append(f"<li>{escaped(v.scenario)}: {escaped(v.rule)}: {met}; {warm}{escaped(facts)}</li>")
    return f'<ul class="note">{"".join(lines)}</ul>'


def _scenario(result: BenchResult, observations: list[Observation], scenario: str) -> str:
    if not any(measured(observations, scenario, "tile")):
        return ""
    waterfall = plots.waterfall_plot(observations, scenario)
    rows = table(*part_rows(result.parts, scenario))
    return section(f"Parts of a tile: {scenario}", waterfall, rows, note(accuracy_line(result)))


def _comparison(result: BenchResult) -> str:
    if result.comparison is None:
        return ""
    line = f'<p class="note">{escaped(comparison_line(result.comparison))}</p>'
    return section("Comparison", line, table(*comparison_rows(result.comparison)), plots.accuracy_plot(result))


def _roofline(result: BenchResult) -> str:
    roof = result.roofline
    if roof.limits is None:
        return section("Roofline", f"<p>None: {escaped(roof.missing)}</p>") if roof.missing else ""
    rows = [
        (
            p.stage,
            number(p.ms),
            number(p.least_ms),
            f"{p.least_ms / p.ms:.0%}",
            p.bound,
            number(p.gop),
            number(p.gb * 1e3),
        )
        for p in roof.points
    ]
    head = ("stage", "ms", "limit ms", "reached", "bound by", "1e9 operations", "MB moved")
    flops = ", ".join(f"{kind} {number(value)} GOP/s" for kind, value in roof.limits.gflops.items())
    line = f"Limits: {flops}, memory {number(roof.limits.bandwidth_gb_s)} GB/s ({roof.limits.source})."
    return section("Roofline", plots.roofline_plot(result), table(head, rows), f'<p class="note">{escaped(line)}</p>')


def _energy(result: BenchResult) -> str:
    if result.energy is None:
        return section("Energy", f"<p>No rail, no number: {escaped(result.energy_missing)}.</p>")
    line = f'<p class="note">{escaped(energy_line(result.energy))}</p>'
    rows = table(*energy_rows(result.energy))
    return section("Energy", line, plots.energy_plot(result), rows, note(accuracy_line(result)))


def _accuracy(result: BenchResult) -> str:
    if not result.accuracy:
        return section("Accuracy", "<p>Task metrics need <code>--data</code>: none was given.</p>")
    line = f"{result.accuracy.get('images')} images of {result.accuracy.get('data')}"
    return section("Accuracy", f'<p class="note">{escaped(line)}</p>', table(*accuracy_rows(result)))


def _conditions(result: BenchResult) -> str:
    items = []
    for name, value in msgspec.to_builtins(result.conditions).items():
        if name == "reasons":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, (list, tuple)):
            value = " .. ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in value)
        elif isinstance(value, float):
            value = f"{value:.6g}" if name != "started" else f"{value:.0f}"
        shown = escaped(str(value)) if value not in (None, "") else "unknown"
        items.append(f"<dt>{escaped(name.replace('_', ' '))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _again(result: BenchResult) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result.workload.items())
    return f'<p>Again: <code>{escaped(result.command or "not recorded")}</code></p><p class="note">{escaped(facts)}</p>'

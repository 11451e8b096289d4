"""One HTML file that opens offline: what was measured, on what, how surely, and how each number can be made again."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fusar_edge.bench import plots
from fusar_edge.bench.observations import Observation, measured, read_observations
from fusar_edge.bench.result import BenchResult, check_seal, read_result
from fusar_edge.bench.table import (
    Row,
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

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;margin:2rem auto;max-width:62rem;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #d9dde3}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.86rem;margin:.6rem 0}
th,td{padding:.18rem .7rem .18rem 0;text-align:right;vertical-align:top}th:first-child,td:first-child{text-align:left}
th{font-weight:600;border-bottom:1px solid #8a939e}tr+tr td{border-top:1px solid #eceff2}
.scroll{overflow-x:auto}.good,.bad{padding:.5rem .9rem;border-left:4px solid;margin:1rem 0}
.good{border-color:#2a7d4f;background:#eef7f1}.bad{border-color:#c1440e;background:#fdf2ec}
.note{color:#4b5563;font-size:.88rem}svg{max-width:100%;height:auto}code{font-size:.86em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.88rem}
dt{color:#4b5563}dd{margin:0;overflow-wrap:anywhere}
"""
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
        f"<h1>fusar-edge bench: {_e(result.conditions.bundle.get('name', ''))}</h1>",
        f'<p class="note">{_e(machine_line(result))}</p>',
        _status(result),
        _section("Scenarios", _table(*verdict_rows(result)), _note(accuracy_line(result)), _rules(result)),
        _section("Latency", plots.latency_plot(observations, scenarios)),
        *(_scenario(result, observations, scenario) for scenario in scenarios),
        _comparison(result),
        _roofline(result),
        _energy(result),
        _accuracy(result),
        _section("Conditions", _conditions(result)),
        _section("How it was measured", f"<p>{METHOD}</p>", _again(result)),
    ]
    title = f"fusar-edge bench {_e(result.conditions.bundle.get('name', ''))}"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    view = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return f"{head}{view}<style>{STYLE}</style></head><body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"


def _status(result: BenchResult) -> str:
    if result.publishable:
        return '<p class="good"><b>Publishable</b>: conditions are known and were steady.</p>'
    reasons = "".join(f"<li>{_e(reason)}</li>" for reason in result.conditions.reasons)
    return f'<div class="bad"><b>Not publishable</b><ul>{reasons}</ul></div>'


def _rules(result: BenchResult) -> str:
    lines = []
    for v in result.verdicts:
        facts = "".join(f"; {name.replace('_', ' ')} {number(value)}" for name, value in v.facts.items())
        met = "met" if v.met else "not met"
        warm = f"{v.warm_up_queries} queries of warm-up left out"
        lines.append(f"<li>{_e(v.scenario)}: {_e(v.rule)}: {met}; {warm}{_e(facts)}</li>")
    return f'<ul class="note">{"".join(lines)}</ul>'


def _scenario(result: BenchResult, observations: list[Observation], scenario: str) -> str:
    if not any(measured(observations, scenario, "tile")):
        return ""
    waterfall = plots.waterfall_plot(observations, scenario)
    rows = _table(*part_rows(result.parts, scenario))
    return _section(f"Parts of a tile: {scenario}", waterfall, rows, _note(accuracy_line(result)))


def _comparison(result: BenchResult) -> str:
    if result.comparison is None:
        return ""
    line = f'<p class="note">{_e(comparison_line(result.comparison))}</p>'
    return _section("Comparison", line, _table(*comparison_rows(result.comparison)), plots.accuracy_plot(result))


def _roofline(result: BenchResult) -> str:
    roof = result.roofline
    if roof.limits is None:
        return _section("Roofline", f"<p>None: {_e(roof.missing)}</p>") if roof.missing else ""
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
    return _section("Roofline", plots.roofline_plot(result), _table(head, rows), f'<p class="note">{_e(line)}</p>')


def _energy(result: BenchResult) -> str:
    if result.energy is None:
        return _section("Energy", f"<p>No rail, no number: {_e(result.energy_missing)}.</p>")
    line = f'<p class="note">{_e(energy_line(result.energy))}</p>'
    rows = _table(*energy_rows(result.energy))
    return _section("Energy", line, plots.energy_plot(result), rows, _note(accuracy_line(result)))


def _accuracy(result: BenchResult) -> str:
    if not result.accuracy:
        return _section("Accuracy", "<p>Task metrics need <code>--data</code>: none was given.</p>")
    line = f"{result.accuracy.get('images')} images of {result.accuracy.get('data')}"
    return _section("Accuracy", f'<p class="note">{_e(line)}</p>', _table(*accuracy_rows(result)))


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
        items.append(
            f"<dt>{_e(name.replace('_', ' '))}</dt><dd>{_e(str(value)) if value not in (None, '') else 'unknown'}</dd>"
        )
    return f"<dl>{''.join(items)}</dl>"


def _again(result: BenchResult) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in result.workload.items())
    return f'<p>Again: <code>{_e(result.command or "not recorded")}</code></p><p class="note">{_e(facts)}</p>'


def _note(text: str) -> str:
    return f'<p class="note">{_e(text)}</p>'


def _section(title: str, *pieces: str) -> str:
    return f"<section><h2>{_e(title)}</h2>{''.join(pieces)}</section>"


def _table(head: Row, rows: Iterable[Row]) -> str:
    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_e(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(head, "th")}{body}</table></div>'


def _e(text: str) -> str:
    return html.escape(str(text))

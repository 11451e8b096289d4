"""The result as Markdown, for a README: a few rows, each with its interval and what it was measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fusar_edge.bench.compare import Candidate, Comparison
from fusar_edge.bench.diff import Diff
from fusar_edge.bench.power.energy import Energy
from fusar_edge.bench.result import BenchResult, PartFigures
from fusar_edge.bench.samples import LEVEL, Interval
from fusar_edge.bench.timing import REFERENCE

Row = Sequence[str]
Rows = tuple[Row, Sequence[Row]]
"""Head and body."""


def markdown_from_result(result: BenchResult) -> str:
    """Verdicts, parts, comparison, energy, accuracy; first of all whether they may be published."""
    pieces = [status_line(result), machine_line(result), table(*verdict_rows(result)), accuracy_line(result)]
    for scenario in dict.fromkeys(part.scenario for part in result.parts):
        pieces += [
            f"### {scenario}: parts of a tile, ms",
            table(*part_rows(result.parts, scenario)),
            accuracy_line(result),
        ]
    if result.comparison:
        pieces += ["### Comparison", comparison_line(result.comparison), table(*comparison_rows(result.comparison))]
    pieces.append("### Energy")
    pieces.append(energy_line(result.energy) if result.energy else f"Not measured: {result.energy_missing}.")
    if result.energy:
        pieces += [table(*energy_rows(result.energy)), accuracy_line(result)]
    if result.accuracy:
        pieces += ["### Task metrics", table(*accuracy_rows(result))]
    return "\n\n".join(pieces) + "\n"


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def status_line(result: BenchResult) -> str:
    if result.publishable:
        return "**Publishable**: conditions known and steady."
    return "**Not publishable**: " + "; ".join(result.conditions.reasons) + "."


def machine_line(result: BenchResult) -> str:
    c, w = result.conditions, result.workload
    threads = c.threads or c.processors
    mode = f", {c.power_mode}" if c.power_mode else ""
    simulated = "simulated scene" if w.get("simulated") else "scene"
    return (
        f"{c.device}{mode}, {threads} threads, {c.system}; fusar-edge {c.fusar_edge}, bundle {c.bundle.get('name')} "
        f"{c.bundle.get('precision')} {c.bundle.get('sha256', '')[:12]}; {simulated} {w.get('scene')}, "
        f"{w.get('tiles')} tiles, tasks {', '.join(w.get('tasks', []))}. Intervals: {LEVEL:.0%}."
    )


def accuracy_line(result: BenchResult) -> str:
    """What these answers are worth, in a line: no speed without it."""
    if not result.accuracy:
        return "Accuracy of these answers: not measured (give --data)."
    figures = [f"{task} {name} {value}" for task, name, value, _ in accuracy_rows(result)[1]]
    return f"Accuracy of these answers ({result.accuracy.get('data')}): {', '.join(figures)}."


def verdict_rows(result: BenchResult) -> Rows:
    head = ("scenario", "metric", "value", "interval", "queries", "tiles", "s")
    rows = []
    for v in result.verdicts:
        value = f"{number(v.figure.value)} {v.unit}"
        rows.append((v.scenario, v.metric, value, bounds(v.figure), str(v.queries), str(v.tiles), f"{v.seconds:.0f}"))
    return head, rows


def part_rows(parts: Iterable[PartFigures], scenario: str) -> Rows:
    head = ("part", "p50", "interval", "p90", "interval", "p99", "interval", "n", "effective")
    rows = []
    for part in parts:
        if part.scenario == scenario and part.part != REFERENCE:
            cells = [cell for i in (part.p50, part.p90, part.p99) for cell in (number(i.value), bounds(i))]
            name = f"{part.part} ({part.task})" if part.task else part.part
            rows.append((name, *cells, str(part.p50.n), f"{part.p50.effective:.0f}"))
    return head, rows


def comparison_line(c: Comparison) -> str:
    held = f"tokens held against {c.reference} (FP32, same weights)" if c.reference else "no FP32 candidate took part"
    return (
        f"Same weights, tiles and questions, greedy, in turns; {c.pairs} pairs in {c.rounds} rounds over {c.tiles} "
        f"tiles, {c.threads} threads each; {held}. Ratio: the other's time over ours on these very tiles; its interval "
        "is over rounds. hf-* and ort-* see the image and read the whole prompt anew for each question, as such a "
        "loop does; ours and llama.cpp keep both from question to question."
    )


def comparison_rows(c: Comparison) -> Rows:
    head = ("candidate", "tile ms", "ratio", "interval", "token ms", "ratio", "interval", "tokens", "tokens agree",
            "answers same", "MiB")  # fmt: skip
    return head, [_candidate_row(row) for row in c.candidates]


def _candidate_row(row: Candidate) -> Row:
    def pair(ratio: Interval | None) -> tuple[str, str]:
        return (f"{ratio.value:.2f}", bounds(ratio)) if ratio else ("", "")

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return (
        f"{row.name} {row.precision}",
        number(row.tile_ms.value) if row.tile_ms else "",
        *pair(row.tile_ratio),
        number(row.token_ms.value) if row.token_ms else "",
        *pair(row.token_ratio),
        str(row.tokens),
        share(row.tokens_agree),
        share(row.answers_same),
        f"{row.memory_mib:.0f}",
    )


def energy_line(e: Energy) -> str:
    idle = f"; at rest {e.idle_w:.2f} W" if e.idle_w is not None else ""
    mean = f"; at work {e.mean_w:.2f} W" if e.mean_w is not None else ""
    notes = "".join(f" {note.capitalize()}." for note in e.notes)
    return (
        f"{e.source}: {' + '.join(e.whole)}, a reading every {e.interval_ms:.0f} ms, gross (rest included)"
        f"{idle}{mean}. An answer's energy is without its tile's vision and prefix.{notes}"
    )


def energy_rows(e: Energy) -> Rows:
    figures = [("tile", e.tile_j), *((f"answer ({task})", j) for task, j in e.answer_j.items()), ("token", e.token_j)]
    rows: list[Row] = [(name, f"{j.value:.4g}", bounds(j), str(j.n)) for name, j in figures if j is not None]
    rows += [(f"tile, {rail} alone", f"{joules:.4g}", "", "") for rail, joules in e.rails_tile_j.items()]
    return ("energy of a", "J", "interval", "n"), rows


def accuracy_rows(result: BenchResult) -> Rows:
    rows = []
    for task, figures in result.accuracy.get("tasks", {}).items():
        for name, figure in figures.items():
            if isinstance(figure, dict) and "value" in figure:
                low, high = figure["interval_95"]
                rows.append((task, name, f"{figure['value']:.3f}", f"{low:.3f} .. {high:.3f}"))
    return ("task", "metric", "value", "interval"), rows


def diff_rows(found: Diff) -> Rows:
    head = ("scenario: part", "before ms", "after ms", "ratio", "interval", "p", "verdict")
    rows = [
        (
            f"{c.scenario}: {c.part}",
            number(c.before_ms),
            number(c.after_ms),
            f"{c.ratio:.3f}",
            f"{c.low:.3f} .. {c.high:.3f}",
            f"{c.p_slower:.2g}",
            c.verdict,
        )
        for c in found.changes
    ]
    return head, rows


def number(value: float) -> str:
    """Three digits; more only in front of the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def bounds(interval: Interval) -> str:
    return f"{number(interval.low)} .. {'?' if interval.high is None else number(interval.high)}"

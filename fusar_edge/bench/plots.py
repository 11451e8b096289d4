"""The report's pictures, as inline SVG made by matplotlib: nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusar_edge.bench.observations import Observation, measured
from fusar_edge.bench.result import BenchResult
from fusar_edge.bench.timing import LEAVES
from fusar_edge.page import GRID, INK, figure_axes, svg

COLOURS = ("#1d3557", "#457b9d", "#7fb3c8", "#c1440e", "#e09f3e", "#5a7d4f", "#8d6a9f", "#6b7280", "#b56576", "#2a9d8f")


def latency_plot(observations: Sequence[Observation], scenarios: Sequence[str]) -> str:
    """Share of queries that are done after so many milliseconds: every observation is a step."""
    figure, axes = figure_axes()
    for colour, scenario in zip(COLOURS, scenarios, strict=False):
        times = np.sort([one.ms for one in measured(observations, scenario, "query")])
        if len(times):
            axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", color=colour, label=scenario)
    for quantile in (0.5, 0.9, 0.99):
        axes.axhline(quantile, color=GRID, linewidth=0.8, zorder=0)
        axes.text(1.0, quantile, f" p{100 * quantile:g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set(xlabel="query, ms", ylabel="share done", xscale="log", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8)
    return svg(figure, "Distribution of the latency of a query in each scenario")


def waterfall_plot(observations: Sequence[Observation], scenario: str) -> str:
    """A tile's parts one after the other: mean time of each, added up. Other: what no part names."""
    tiles = len(list(measured(observations, scenario, "tile")))
    totals = {part: sum(o.ms for o in measured(observations, scenario, part)) / max(tiles, 1) for part in LEAVES}
    whole = sum(o.ms for o in measured(observations, scenario, "tile")) / max(tiles, 1)
    rows = [(part, ms) for part, ms in totals.items() if ms]
    rows.append(("other", max(whole - sum(ms for _, ms in rows), 0.0)))
    figure, axes = figure_axes(0.32 * len(rows) + 0.9)
    start = 0.0
    for place, (_, ms) in enumerate(rows):
        axes.barh(place, ms, left=start, color=COLOURS[place % len(COLOURS)], height=0.72)
        axes.text(
            start + ms + 0.008 * whole, place, f"{ms:.3g} ms, {ms / max(whole, 1e-9):.1%}", va="center", fontsize=8
        )
        start += ms
    axes.set(xlabel=f"mean ms since a tile's start ({tiles} tiles)", xlim=(0, 1.22 * max(whole, start, 1e-9)))
    axes.set_yticks(range(len(rows)), [part for part, _ in rows], fontsize=8)
    axes.invert_yaxis()
    return svg(figure, f"Waterfall of a tile, {scenario}: mean time of each part")


def roofline_plot(result: BenchResult) -> str:
    """Stages in the plane of intensity and rate, under the limits; empty where there are none."""
    roof = result.roofline
    if roof.limits is None or not roof.points:
        return ""
    figure, axes = figure_axes()
    x = np.geomspace(0.1, max(10_000.0, 10 * max(point.intensity for point in roof.points)), 200)
    for (kind, gflops), style in zip(roof.limits.gflops.items(), ("-", "--", ":"), strict=False):
        axes.plot(x, np.minimum(gflops, x * roof.limits.bandwidth_gb_s), style, color=INK, label=f"limit, {kind}")
    for colour, point in zip(COLOURS[3:], roof.points, strict=False):
        axes.plot(point.intensity, point.gop_s, "o", color=colour, label=f"{point.stage}: {point.ms:.3g} ms")
    axes.set(
        xlabel="operations per byte of memory traffic", ylabel="1e9 operations per second", xscale="log", yscale="log"
    )
    axes.legend(frameon=False, fontsize=8)
    return svg(figure, "Roofline: the stages under the machine's limits")


def energy_plot(result: BenchResult) -> str:
    """Joules of a tile, an answer of each task, a token; empty where nothing measures power."""
    e = result.energy
    if e is None:
        return ""
    rows = [("tile", e.tile_j), *((f"answer: {task}", j) for task, j in e.answer_j.items()), ("token", e.token_j)]
    held = [(name, j) for name, j in rows if j is not None]
    figure, axes = figure_axes(0.32 * len(held) + 0.9)
    for place, (_, j) in enumerate(held):
        axes.barh(place, j.value, color=COLOURS[place % len(COLOURS)], height=0.7)
        axes.plot([j.low, j.high or j.value], [place, place], color="black", linewidth=1)
        axes.text(j.value, place, f"  {j.value:.3g} J", va="center", fontsize=8)
    axes.set_yticks(range(len(held)), [name for name, _ in held], fontsize=8)
    axes.set(xlabel=f"J on {' + '.join(e.whole)}", xscale="log")
    axes.invert_yaxis()
    return svg(figure, "Energy of a tile, of answers and of a token")


def accuracy_plot(result: BenchResult) -> str:
    """Agreement with the FP32 reference against speed, one point a candidate; empty without a comparison."""
    c = result.comparison
    rows = [row for row in c.candidates if row.tile_ms and row.tokens_agree is not None] if c else []
    if not rows:
        return ""
    figure, axes = figure_axes()
    for colour, row in zip(COLOURS, rows, strict=False):
        assert row.tile_ms is not None
        axes.plot(1e3 / row.tile_ms.value, row.tokens_agree, "o", color=colour)
        label = f" {row.name} {row.precision}"
        axes.annotate(label, (1e3 / row.tile_ms.value, row.tokens_agree or 0.0), fontsize=8, va="bottom")
    axes.set(xlabel="tiles per second", ylabel=f"tokens as {c.reference if c else ''}", ylim=(0, 1.08))
    axes.set_xlim(0, 1.35 * max(1e3 / row.tile_ms.value for row in rows if row.tile_ms))
    return svg(figure, "Accuracy against speed")

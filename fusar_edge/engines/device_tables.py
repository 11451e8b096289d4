"""The tables of docs/devices.md that are computed: `python -m fusar_edge.engines.device_tables docs/devices.md`.

Each stands between `<!-- table NAME -->` and `<!-- end -->`; a test recomputes them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fusar_edge.engines.memory import MIB
from fusar_edge.engines.planner import Plan, plan
from fusar_edge.engines.published import compared, fitted
from fusar_edge.manifest import output_file
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.specs import EngineSpec, Precision

MODELS = ("fusar-tiny", "fusar-gpt-3b", "fusar-gpt-7b")
PRECISIONS: tuple[Precision, ...] = ("int8", "int8-fp16")
_PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def plans_table() -> str:
    """Every spec with every model, in the precision of today's graphs and in the one that would need the least."""
    lines = [
        "| device | model | graphs | weights | scratch, cache | needed / may use | peak of building | tile, caption |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for device in device_names():
        shown = [(m, p) for m in MODELS for p in PRECISIONS if p == "int8" or (m != "fusar-tiny" and device != "cpu")]
        lines += [_plan_row(plan(device, model, precision=precision)) for model, precision in shown]
    return "\n".join(lines)


def _plan_row(planned: Plan) -> str:
    memory, times = planned.memory, planned.times
    weights = sum(memory.bytes_of(name) for name in ("vision weights", "decoder weights", "embedding"))
    working = sum(memory.bytes_of(name) for name in ("vision scratch", "decoder scratch", "KV cache"))
    verdict = "fits" if planned.problem is None else "**no**"
    peak = "-"
    if planned.spec.engine == "tensorrt":
        peak = f"{_gib(memory.build_peak[0])} - {_gib(memory.build_peak[1])}{'' if memory.builds else ', **no**'}"
    tile = "-" if times is None or planned.problem else f"{_rounded(times.tile_ms)}, {_rounded(times.caption_ms)}"
    if planned.shape.name == "fusar-tiny" and times is not None:
        tile = "launch-bound"
    cells = (
        planned.spec.name,
        planned.shape.name,
        planned.weights.name,
        _gib(weights),
        _gib(working),
        f"{_gib(memory.needed)} / {_gib(memory.available)}: {verdict}",
        peak,
        tile,
    )
    return f"| {' | '.join(cells)} |"


def published_table() -> str:
    """Each published figure beside the prediction."""
    lines = [
        "| device | model | phase | tokens | published, ms | share of peak | predicted, ms | error | left out |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in compared():
        row, errors = found.row, f"{found.error:+.0%} | {found.error_left_out:+.0%}"
        lines.append(
            f"| {row.device} | {row.model} {row.format} | {row.phase} | {row.tokens:,} | {row.published_ms:,.1f} | "
            f"{found.share:.2f} | {found.predicted_ms:,.1f} | {errors} |"
        )
    return "\n".join(lines)


def fit_table() -> str:
    """The two shares, and the errors over all rows."""
    efficiency, rows = fitted(), compared()
    lines = [
        "| share of the peak | fitted | rows | mean error | largest | left out: mean | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, share, phases in (
        ("arithmetic", efficiency.compute, ("vision", "prefill")),
        ("memory bandwidth", efficiency.bandwidth, ("decode",)),
    ):
        chosen = [c for c in rows if c.row.phase in phases]
        errors, left_out = [abs(c.error) for c in chosen], [abs(c.error_left_out) for c in chosen]
        mean, mean_out = sum(errors) / len(errors), sum(left_out) / len(left_out)
        lines.append(
            f"| {name} ({', '.join(phases)}) | {share:.2f} | {len(chosen)} | {mean:.0%} | {max(errors):.0%} | "
            f"{mean_out:.0%} | {max(left_out):.0%} |"
        )
    return "\n".join(lines)


TABLES = {"plans": plans_table, "published": published_table, "fit": fit_table}


def device_names() -> list[str]:
    """Specs by the memory that a process may use."""
    return sorted(recipe_names("engines"), key=lambda name: load_recipe("engines", name, EngineSpec)[0].memory_mib)


def with_tables(text: str) -> str:
    """The document with its tables computed anew."""
    return _PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def _gib(size: int) -> str:
    gib = size / (MIB << 10)
    return f"{gib:.2f}" if gib < 1 else f"{gib:.1f}"


def _rounded(milliseconds: float) -> str:
    """Two digits: it is an estimate."""
    return f"{float(f'{milliseconds:.1e}') / 1000:g} s"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        document = Path(name)
        new = with_tables(document.read_text(encoding="utf-8"))
        with output_file(document, force=True) as work:
            work.write_text(new, encoding="utf-8")

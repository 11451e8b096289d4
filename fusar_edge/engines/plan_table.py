"""A plan for people (tables of rich) and for programs (one JSON object)."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from fusar_edge.engines.memory import MIB
from fusar_edge.engines.planner import Plan
from fusar_edge.engines.roofline import FITTED


def plan_tables(planned: Plan) -> RenderableType:
    """Memory, and times where there are any."""
    spec, memory = planned.spec, planned.memory
    title = f"{planned.shape.name}, {planned.weights.name}, on {spec.name} ({spec.status})"
    table = Table("memory", "MiB", "basis", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for item in memory.items:
        table.add_row(item.name, f"{item.bytes / MIB:,.0f}", item.basis)
    table.add_section()
    table.add_row("needed", f"{memory.needed / MIB:,.0f}", "fits" if memory.fits else "does not fit")
    table.add_row("may use", f"{memory.available / MIB:,.0f}", _kept(planned))
    low, high = memory.build_peak
    if spec.engine == "tensorrt":
        table.add_row("peak of building", f"{low / MIB:,.0f} - {high / MIB:,.0f}", "assumed, 3 to 4 times the weights")
    return table if planned.times is None else Group(table, _times(planned))


def _kept(planned: Plan) -> str:
    if planned.memory.total is None:
        return "memory_mib of the spec"
    kept = planned.memory.total - planned.memory.available
    return f"the system keeps {kept / MIB:,.0f} of {planned.memory.total / MIB:,.0f}"


def _times(planned: Plan) -> Table:
    times, hardware = planned.times, planned.spec.hardware
    assert times is not None
    assert hardware is not None
    title = f"roofline estimate, not measured ({hardware.power_mode}, {hardware.gpu_clock_mhz} MHz)"
    caption = "Launching kernels is not in it: too low for small models."
    table = Table("time", "ms", "basis", title=title, title_justify="left", caption=caption)
    table.columns[1].justify = "right"
    table.add_row("vision", f"{times.vision_ms:,.1f}", "one tile")
    table.add_row("prefill", f"{times.prefill_ms:,.1f}", "image and template, then a question")
    table.add_row("decode", f"{times.decode_ms:,.2f}", f"a token; {1000 / times.decode_ms:,.0f} tokens/s")
    goal = f"; goal {times.latency_goal_ms:,.0f}" if times.latency_goal_ms else ""
    table.add_row("tile", f"{times.tile_ms:,.0f}", f"and an answer of 8 tokens{goal}")
    table.add_row("caption", f"{times.caption_ms:,.0f}", "the same with 192 tokens")
    return table


def plan_record(planned: Plan) -> dict[str, Any]:
    """What the verb prints as JSON; sizes in MiB, times in ms."""
    memory, times, spec = planned.memory, planned.times, planned.spec
    return {
        "spec": spec.name,
        "status": spec.status,
        "model": planned.shape.name,
        "precision": planned.weights.name,
        "anchors": f"baked, rank {planned.shape.baked_rank}" if planned.shape.baked_rank else "codes",
        "memory_mib": {item.name: round(item.bytes / MIB, 1) for item in memory.items},
        "needed_mib": round(memory.needed / MIB),
        "available_mib": round(memory.available / MIB),
        "fits": planned.problem is None,
        "build_peak_mib": [round(size / MIB) for size in memory.build_peak] if spec.engine == "tensorrt" else None,
        "builds": planned.build_warning is None,
        "risk": planned.risk,
        "measured": False,
        "efficiency": {"compute": FITTED.compute, "bandwidth": FITTED.bandwidth},
        "times_ms": None
        if times is None
        else {
            "vision": round(times.vision_ms, 2),
            "prefill": round(times.prefill_ms, 2),
            "decode": round(times.decode_ms, 3),
            "tile": round(times.tile_ms, 1),
            "caption": round(times.caption_ms, 1),
            "goal": times.latency_goal_ms,
        },
    }

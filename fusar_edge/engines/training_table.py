"""A plan of training for people (a table of rich) and for programs (one JSON object)."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fusar_edge.engines.memory import MIB
from fusar_edge.engines.training_memory import STRATEGIES, TrainingPlan


def training_table(planned: TrainingPlan) -> Table:
    """MiB of each process. The basis is that of one process: what others share, they hold a part of."""
    title = (
        f"{planned.shape.name}, stage {planned.stage}, on {planned.processes} x {planned.spec.name}; "
        f"{planned.counts.trained / 1e6:,.1f} M of {_all(planned) / 1e9:,.2f} G parameters are trained"
    )
    table = Table("MiB of each process", *STRATEGIES, "basis", title=title, title_justify="left")
    for column in table.columns[1:-1]:
        column.justify = "right"
    plans = [planned.memory[strategy] for strategy in STRATEGIES]
    for index, first in enumerate(plans[0].items):
        rows = [plan.items[index] for plan in plans]
        bases = [first.basis] if first.bytes else [item.basis for item in rows[1:]]
        table.add_row(first.name, *(f"{item.bytes / MIB:,.0f}" for item in rows), "; ".join(bases))
    table.add_section()
    table.add_row("needed", *(f"{plan.needed / MIB:,.0f}" for plan in plans), "for the longest sequence")
    other = "without checkpointing" if planned.checkpointing else "with checkpointing"
    table.add_row(other, *(f"{planned.otherwise[s] / MIB:,.0f}" for s in STRATEGIES), "recipe's `checkpointing`")
    table.add_row("may use", *(f"{plan.available / MIB:,.0f}" for plan in plans), "memory_mib of the spec")
    table.add_row("fits", *("yes" if plan.fits else "no" for plan in plans), "an estimate; nothing was measured")
    return table


def _all(planned: TrainingPlan) -> int:
    counts = planned.counts
    return counts.layers + counts.outside + counts.tlm + counts.lora


def training_record(planned: TrainingPlan) -> dict[str, Any]:
    """What the verb prints as JSON; sizes in MiB."""
    return {
        "spec": planned.spec.name,
        "model": planned.shape.name,
        "stage": planned.stage,
        "processes": planned.processes,
        "parameters": _all(planned),
        "trained_parameters": planned.counts.trained,
        "tokens": planned.tokens,
        "checkpointing": planned.checkpointing,
        "memory_mib": {
            strategy: {item.name: round(item.bytes / MIB, 1) for item in plan.items}
            for strategy, plan in planned.memory.items()
        },
        "needed_mib": {strategy: round(plan.needed / MIB) for strategy, plan in planned.memory.items()},
        "otherwise_mib": {strategy: round(size / MIB) for strategy, size in planned.otherwise.items()},
        "available_mib": planned.spec.memory_mib,
        "fits": planned.fitting,
        "measured": False,
    }

"""The gate's checks as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

STATE = {True: "holds", False: "FAILS", None: "not judged"}


def gate_table(gate: Mapping[str, Any]) -> Table:
    """Of the record that `gate.verdict` made."""
    title = "gate: holds" if gate["holds"] else f"gate: waived, {gate['waiver']}"
    table = Table("check", "INT8", "95 %", "asked for", "", "", title=title)
    for check in gate["checks"]:
        interval = check.get("interval_95")
        value = check.get("value")
        table.add_row(
            check["name"],
            "-" if value is None else f"{value:.4f}",
            "" if interval is None else " .. ".join("-" if v is None else f"{v:.3f}" for v in interval),
            f"{'>=' if check['least'] else '<='} {check['bound']:.4g}",
            STATE[check["holds"]],
            check.get("note", ""),
        )
    return table

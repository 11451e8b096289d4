"""The gate's checks as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

STATE = {True: "holds", False: "FAILS", None: "not judged"}


def gate_table(gate: Mapping[str, Any]) -> Table:
    """Of the record that `gate.verdict` made."""
    state = "holds" if gate["holds"] else f"waived, {gate['waiver']}"
    table = Table(title=escape(f"gate on {gate['images']} images: {state}"))
    for name in ("check", "INT8", "95 %", "asked for", "", ""):
        table.add_column(name, no_wrap=bool(name), overflow="fold")
    for check in gate["checks"]:
        interval = check.get("interval_95")
        value = check.get("value")
        table.add_row(
            check["name"],
            "-" if value is None else f"{value:.4f}",
            "" if interval is None else " .. ".join("-" if v is None else f"{v:.3f}" for v in interval),
            f"{'>=' if check['least'] else '<='} {check['bound']:.4g}",
            STATE[check["holds"]],
            escape(check.get("note", "")),
        )
    return table

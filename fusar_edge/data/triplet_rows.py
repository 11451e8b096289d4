"""Rows of the official triplet manifest, written: one JSON object a line (REFERENCE section 1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusar_edge.data.tasks import NO_TARGET, questions_from_truth
from fusar_edge.data.truth import COORDINATE_SIZE, Truth
from fusar_edge.manifest import output_file

Row = dict[str, Any]

CLASSIFY_ROWS_PER_IMAGE = 3
"""A crowded harbour would otherwise fill a training set with its own classes."""


def manifest_row(
    task: str,
    question: str,
    answer: Any,
    image: str,
    aef: str | None,
    id: str,
    *,
    crs: str | None = None,
    bounds: Sequence[float] | None = None,
    acquired: str | None = None,
) -> Row:
    """One row. What is None is left out of it, since the official reader knows no null."""
    optional = {"aef": aef, "crs": crs, "bounds": None if bounds is None else list(bounds), "acquired": acquired}
    row: Row = {"id": id, "task": task, "image": image, "question": question, "answer": answer}
    row |= {key: value for key, value in optional.items() if value is not None}
    return row | {"coordinate_size": COORDINATE_SIZE}


def rows_from_truth(
    truth: Truth,
    image: str,
    aef: str | None,
    id: str,
    *,
    crs: str | None = None,
    bounds: Sequence[float] | None = None,
    acquired: str | None = None,
) -> list[Row]:
    """Every question that the truth supports, as rows `id/TASK-N`.

    `image`, `aef`: paths relative to the manifest. `crs` is a name such as "EPSG:32631", `bounds` is [lon_min, lat_min,
    lon_max, lat_max] in degrees, `acquired` an ISO 8601 time. The answer of a detect row with targets is the list
    itself, not its text; without any it is the text "None". At most three classify rows.
    """
    rows: list[Row] = []
    numbers: dict[str, int] = {}
    for task, question, text in questions_from_truth(truth):
        number = numbers[task] = numbers.get(task, 0) + 1
        if task == "classify" and number > CLASSIFY_ROWS_PER_IMAGE:
            continue
        answer = json.loads(text) if task == "detect" and text != NO_TARGET else text
        row_id = f"{id}/{task}-{number}"
        rows.append(manifest_row(task, question, answer, image, aef, row_id, crs=crs, bounds=bounds, acquired=acquired))
    return rows


def write_rows(path: Path, rows: Iterable[Row], *, force: bool = False) -> int:
    """Write rows as JSONL, whole or not at all; the number of rows. OutputExistsError unless `force`."""
    count = 0
    with output_file(path, force=force) as work, open(work, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count

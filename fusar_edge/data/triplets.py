"""Reads the official FUSAR-GPT manifest (JSON list or JSONL): image, aef, question, answer (REFERENCE section 1)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.data.tasks import TASKS, canonical_prompt, parse_answer
from fusar_edge.data.truth import COORDINATE_SIZE, Box, Target, Truth
from fusar_edge.errors import DataError


class Triplet(msgspec.Struct, frozen=True, kw_only=True):
    """One record, paths resolved, question and answer as text."""

    image: Path
    question: str
    answer: str
    aef: Path | None = None
    """The image's anchors (`anchors.per_image`); None: no anchors, plain Qwen2.5-VL."""
    task: str | None = None
    """One of TASKS; None where neither the record nor its question says."""
    id: str | None = None


class _Record(msgspec.Struct, kw_only=True):
    """The keys that are read; the official data has others, which are left alone."""

    image: str
    answer: Any
    aef: str | None = None
    question: str | None = None
    task: str | None = None
    label: str | None = None
    id: str | int | None = None
    coordinate_size: int = COORDINATE_SIZE


_LABEL = re.compile(
    r"following object: (?P<detect>[^.]+)\.|How many (?P<count>.+?) targets are|Which cells hold an? (?P<grid>.+?)\?"
)
_CLASSIFY_BOX = re.compile(r"the target in the box \[([-0-9., ]+)\]")


def task_of_question(question: str) -> str | None:
    """The task that a canonical or official question asks for."""
    if question.startswith("Describe this SAR image"):
        return "caption"
    if _CLASSIFY_BOX.search(question):
        return "classify"
    found = _LABEL.search(question)
    return next((k for k, v in found.groupdict().items() if v), None) if found else None


def label_of_question(question: str) -> str | None:
    """The class that a count, grid or detect question names."""
    found = _LABEL.search(question)
    return next((v for v in found.groupdict().values() if v), None) if found else None


def box_of_question(question: str) -> Box | None:
    """The box that a classify question names."""
    found = _CLASSIFY_BOX.search(question)
    if not found:
        return None
    try:
        x1, y1, x2, y2 = (float(part) for part in found.group(1).split(","))
    except ValueError:
        return None
    return x1, y1, x2, y2


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, record) of a JSON list, or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest") from None
    except (UnicodeDecodeError, IsADirectoryError) as problem:
        raise DataError(f"{path}: not a text file: {problem}") from None
    if text.lstrip().startswith("["):
        try:
            return [(f"{path}, record {i}", row) for i, row in enumerate(json.loads(text))]
        except json.JSONDecodeError as problem:
            raise DataError(f"{path}: not valid JSON: {problem}") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except json.JSONDecodeError as problem:
                raise DataError(f"{path}:{number}: not valid JSON: {problem}") from None
    return rows


def _triplet(where: str, row: dict[str, Any], folder: Path) -> Triplet:
    try:
        record = msgspec.convert(row, _Record)
    except msgspec.ValidationError as problem:
        raise DataError(f"{where}: {problem}; needed: image, answer, and question or task") from None
    if record.coordinate_size != COORDINATE_SIZE:
        raise DataError(f"{where}: coordinate_size {record.coordinate_size}; only {COORDINATE_SIZE} is defined")
    if record.task is not None and record.task not in TASKS:
        raise DataError(f"{where}: task {record.task!r} is not one of {', '.join(TASKS)}")
    question = record.question
    if question is None:
        if record.task is None:
            raise DataError(f"{where}: neither `question` nor `task`; give one of them")
        if record.task == "classify":
            raise DataError(f"{where}: the task classify needs a `question` that names the box")
        question = canonical_prompt(record.task, record.label or "ship")
    answer = record.answer
    if answer is None:
        answer = "None"
    image, aef = folder / record.image, folder / record.aef if record.aef else None
    for file in (image, aef):
        if file is not None and not file.is_file():
            raise DataError(f"{where}: {file} does not exist; paths are relative to the manifest")
    return Triplet(
        image=image,
        aef=aef,
        question=question,
        answer=answer if isinstance(answer, str) else json.dumps(answer),
        task=record.task or task_of_question(question),
        id=None if record.id is None else str(record.id),
    )


def read_triplets(path: Path) -> list[Triplet]:
    """Every record of a manifest; DataError names the line that cannot be used."""
    path = Path(path)
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path}: no records")
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: a record is a JSON object, not {type(row).__name__}")
    return [_triplet(where, row, path.parent) for where, row in rows]


def truth_of_image(triplets: list[Triplet]) -> Truth | None:
    """The truth that one image's detection record holds; None where there is no such record."""
    for triplet in triplets:
        if triplet.task == "detect":
            parsed = _unclipped_targets(triplet.answer)
            if parsed is not None:
                return Truth(targets=parsed, label=label_of_question(triplet.question) or "ship")
    return None


def _unclipped_targets(answer: str) -> tuple[Target, ...] | None:
    if not parse_answer("detect", answer).ok:
        return None
    if answer.strip().rstrip(".") == "None":
        return ()
    try:
        rows = json.loads(answer)
        return tuple(Target(tuple(map(float, row["bbox_2d"])), row["label"]) for row in rows)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError):
        return tuple(parse_answer("detect", answer).value)


def triplets_by_image(triplets: list[Triplet]) -> dict[Path, list[Triplet]]:
    groups: dict[Path, list[Triplet]] = {}
    for triplet in triplets:
        groups.setdefault(triplet.image, []).append(triplet)
    return groups

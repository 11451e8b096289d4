"""The five tasks: canonical prompts, answers from ground truth, and total parsers of the model's answers."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from fusar_edge.data.truth import CAPTION_FIELDS, COORDINATE_SIZE, Box, Target, Truth, clipped, grid_cell

TASKS = ("caption", "count", "grid", "classify", "detect")

NO_TARGET = "None"
"""The official answer where there is nothing to detect."""

_NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_CELL_WORDS = (
    "upper left", "upper centre", "upper right",
    "middle left", "centre", "middle right",
    "lower left", "lower centre", "lower right",
)  # fmt: skip


class Parsed(msgspec.Struct, frozen=True):
    """An answer as read. `value` by task: caption -> dict of fields or str; count -> int; grid -> sorted tuple of cells
    1..9; classify -> str; detect -> tuple of Targets, clipped to the frame. None when not `ok`."""

    task: str
    ok: bool
    value: Any
    text: str
    """The model's text, always kept."""


# Prompts ------------------------------------------------------------------------------------------------------------


def caption_prompt(fields: bool = True) -> str:
    if fields:
        return f"Describe this SAR image in eight fields: {', '.join(CAPTION_FIELDS)}."
    return "Describe this SAR image in one sentence."


def count_prompt(label: str = "ship") -> str:
    return f"How many {label} targets are in this SAR image? Answer with one number."


def grid_prompt(label: str = "ship") -> str:
    return f"The cells of a 3x3 grid are numbered 1 to 9, row by row. Which cells hold a {label}? Answer with numbers."


def classify_prompt(box: Box) -> str:
    return f"What is the class of the target in the box {json.dumps(_whole(box))}?"


def detect_prompt(label: str = "ship") -> str:
    """The official detection question (REFERENCE section 1)."""
    return (
        "This is a SAR image. Please carefully check the image and detect the following object: "
        f"{label}. Output each detected target's bbox coordinates in JSON format. "
        "If there are no such targets in the image, simply respond with None."
    )


def canonical_prompt(task: str, label: str = "ship", box: Box | None = None) -> str:
    """The prompt used where a record or a user names the task only. `classify` needs a box."""
    if task == "classify":
        if box is None:
            raise ValueError("the task 'classify' needs a box")
        return classify_prompt(box)
    prompts = {
        "caption": caption_prompt,
        "count": lambda: count_prompt(label),
        "grid": lambda: grid_prompt(label),
        "detect": lambda: detect_prompt(label),
    }
    if task not in prompts:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    return prompts[task]()


# Answers ------------------------------------------------------------------------------------------------------------


def _whole(box: Box) -> list[int]:
    return [round(v) for v in box]


def visible_targets(truth: Truth) -> list[Target]:
    """Targets with a part inside the frame, clipped, ordered by row then column of their centre."""
    inside = [Target(box, t.label) for t in truth.targets if (box := clipped(t.box))]
    return sorted(inside, key=lambda t: (grid_cell(t.box), t.box[1] + t.box[3], t.box[0] + t.box[2]))


def fields_text(fields: dict[str, str]) -> str:
    return "\n".join(f"{name}: {fields[name]}" for name in CAPTION_FIELDS)


def targets_sentence(truth: Truth) -> str:
    """One sentence from the targets alone: it says nothing that the boxes do not."""
    targets = visible_targets(truth)
    count = len(targets)
    amount = _NUMBER_WORDS[count] if count < len(_NUMBER_WORDS) else str(count)
    if not targets:
        return f"A SAR image with no {truth.label} targets."
    cells = sorted({grid_cell(t.box) for t in targets})
    places = ", ".join(_CELL_WORDS[c - 1] for c in cells)
    plural = "s" if count > 1 else ""
    return f"A SAR image with {amount} {truth.label} target{plural}: {places}."


def count_answer(truth: Truth) -> str:
    return str(len(visible_targets(truth)))


def grid_answer(truth: Truth) -> str:
    cells = sorted({grid_cell(t.box) for t in visible_targets(truth)})
    return ", ".join(map(str, cells)) or NO_TARGET


def detect_answer(targets: list[Target]) -> str:
    """The official JSON form, or `None`."""
    rows = [{"bbox_2d": _whole(t.box), "label": t.label} for t in targets]
    return json.dumps(rows) if rows else NO_TARGET


def caption_answer(truth: Truth, fields: bool) -> str:
    if fields and truth.fields:
        return fields_text(truth.fields)
    return truth.sentence or targets_sentence(truth)


def questions_from_truth(truth: Truth) -> list[tuple[str, str, str]]:
    """Every (task, question, answer) that the truth supports."""
    targets = visible_targets(truth)
    rows = [
        ("count", count_prompt(truth.label), count_answer(truth)),
        ("grid", grid_prompt(truth.label), grid_answer(truth)),
        ("detect", detect_prompt(truth.label), detect_answer(targets)),
        ("caption", caption_prompt(fields=False), caption_answer(truth, fields=False)),
    ]
    if truth.fields:
        rows.append(("caption", caption_prompt(fields=True), caption_answer(truth, fields=True)))
    rows += [("classify", classify_prompt(t.box), t.label) for t in targets]
    return rows


# Parsers: total, they never raise -----------------------------------------------------------------------------------

_BOX = re.compile(r'\{\s*"bbox_2d"\s*:\s*\[([^\[\]]*)\]\s*,\s*"label"\s*:\s*"([^"]*)"\s*\}')
_FIELD = re.compile(rf"^\s*\**({'|'.join(CAPTION_FIELDS)})\**\s*:\s*(.+?)\s*$", re.MULTILINE)


def _parse_caption(text: str) -> Any:
    fields: dict[str, str] = dict(_FIELD.findall(text))
    if len(fields) == len(CAPTION_FIELDS):
        return {name: fields[name] for name in CAPTION_FIELDS}
    return text.strip() or None


def _parse_count(text: str) -> int | None:
    stripped = text.strip().rstrip(".").lower()
    if re.fullmatch(r"[0-9]{1,6}", stripped):
        return int(stripped)
    if stripped == "none":
        return 0
    return _NUMBER_WORDS.index(stripped) if stripped in _NUMBER_WORDS else None


def _parse_grid(text: str) -> tuple[int, ...] | None:
    stripped = text.strip().rstrip(".")
    if stripped == NO_TARGET:
        return ()
    parts = [part.strip() for part in stripped.strip("[]").split(",")]
    if not all(re.fullmatch(r"[1-9]", part) for part in parts):
        return None
    return tuple(sorted({int(part) for part in parts}))


def _parse_classify(text: str) -> str | None:
    label = text.strip().rstrip(".")
    return label if 0 < len(label) <= 64 and "\n" not in label else None


def _box_from_numbers(numbers: list[str], size: int) -> Box | None:
    if len(numbers) != 4 or not all(re.fullmatch(r"-?[0-9]{1,6}(\.[0-9]{1,6})?", n) for n in numbers):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    return clipped((x1, y1, x2, y2), size)


def _parse_detect(text: str, size: int) -> tuple[Target, ...] | None:
    """Every complete box is kept, also of an answer that was cut short; a box that is empty or outside is not."""
    if text.strip().rstrip(".") == NO_TARGET:
        return ()
    found = _BOX.findall(text)
    if not found:
        return None
    rows = [(_box_from_numbers([n.strip() for n in numbers.split(",")], size), label) for numbers, label in found]
    return tuple(Target(box, label) for box, label in rows if box) or None


def parse_answer(task: str, text: str, size: int = COORDINATE_SIZE) -> Parsed:
    """Read an answer. Never raises on any text: an answer that does not parse has `ok` False and keeps its text."""
    parsers = {
        "caption": _parse_caption,
        "count": _parse_count,
        "grid": _parse_grid,
        "classify": _parse_classify,
        "detect": lambda t: _parse_detect(t, size),
    }
    if task not in parsers:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    value = parsers[task](text)
    return Parsed(task, value is not None, value, text)

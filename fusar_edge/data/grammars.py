"""What an answer may look like, task by task: the form that `tasks` writes, as Lark grammars (llguidance's dialect)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from fusar_edge.data.tasks import NO_TARGET
from fusar_edge.data.truth import CAPTION_FIELDS

_SLOT = re.compile(r"\[(\d+), (\d+), (?:(\d+), )?(\d*)$")
"""End of a text that is about to say, or is saying, x2 or y2 of a box."""


def answer_grammar(task: str, text: str, label: str | None, size: int) -> str:
    """Grammar of the answers to a question.

    `text`: the question; a caption has the eight fields where it names them. `label`: of the boxes; None: not known.
    `size`: side of the square that coordinates refer to. Every sentence of the grammar is read by `parse_answer`, but
    for boxes without area: see `box_bound`.
    """
    fields = all(name in text for name in CAPTION_FIELDS)
    makers: dict[str, Callable[[], str]] = {
        "caption": _fields if fields else lambda: r"start: /\S(.|\n)*/",
        "count": lambda: "start: /0|[1-9][0-9]{0,2}/",
        "grid": _grid,
        "classify": lambda: r'start: /[^\s."\x00-\x1f][^"\x00-\x1f]{0,61}[^\s"\x00-\x1f]|[^\s."\x00-\x1f]/',
        "detect": lambda: _detect(label, size),
    }
    if task not in makers:
        raise ValueError(f"task {task!r} is not one of {', '.join(makers)}")
    return makers[task]()


def box_bound(answer: str) -> tuple[str, int] | None:
    """Where a `detect` answer is in the midst of x2 or y2: the digits so far, and the least value that leaves area.

    A grammar cannot say it: it depends on x1 and y1.
    """
    if (slot := _SLOT.search(answer)) is None:
        return None
    x1, y1, x2, digits = slot.groups()
    return digits, int(x1 if x2 is None else y1) + 1


def may_follow(digits: str, more: str, least: int, size: int) -> bool:
    """Whether the text `more` after the digits of a number can still make it at least `least`, at most `size`."""
    number = re.match(r"\d*", digits + more)
    assert number is not None
    said, complete = number[0], len(number[0]) < len(digits + more)
    if not said:
        return not complete
    value = most = int(said)
    power = 10
    while not complete and 0 < value * power <= size:
        most = min(value * power + power - 1, size)
        power *= 10
    return most >= least


def _fields() -> str:
    value = r"VALUE: /[^\s*][^\n]*/"
    lines = ' "\\n" '.join(f"{json.dumps(name + ': ')} VALUE" for name in CAPTION_FIELDS)
    return f"start: {lines}\n{value}"


def _grid() -> str:
    """Cells rise: each once, in the order in which answers are written."""
    rules = [f'start: "{NO_TARGET}" | {" | ".join(f"c{cell}" for cell in range(1, 10))}']
    for cell in range(1, 9):
        rules.append(f'c{cell}: "{cell}" (", " ({" | ".join(f"c{n}" for n in range(cell + 1, 10))}))?')
    return "\n".join([*rules, 'c9: "9"'])


def _detect(label: str | None, size: int) -> str:
    plain = label is not None and label.isascii() and label.isprintable() and not set(label) & {'"', "\\"}
    named = json.dumps(f'"{label}"') if plain else r'/"[^"\\\x00-\x1f]{1,64}"/'
    whole = '{{"type": "integer", "minimum": {}, "maximum": {}}}'.format
    box = r'box: "{\"bbox_2d\": [" low ", " low ", " high ", " high "], \"label\": " ' + named + r' "}"'
    return "\n".join(
        [
            f'start: "{NO_TARGET}" | "[" box (", " box)* "]"',
            box,
            f"low: %json {whole(0, size - 1)}",
            f"high: %json {whole(1, size)}",
        ]
    )

"""Task metrics on parsed answers. An answer that does not parse counts as wrong, never as absent.

count     accuracy (exact), mean absolute error of the answers that parse
grid      acc_100: the set of cells is the true one; acc_50: Jaccard index at least 0.5; top_1: the first cell named is
          a true one. The paper names Acc@100, Acc@50 and Top-1 (REFERENCE section 1) without formulas; these are ours.
classify  accuracy
detect    F1 at IoU 0.25 and 0.50, micro-averaged, one-to-one greedy matching in the order of overlap
caption   share of the eight fields that are right to the letter; F1 of words (SQuAD's) over the whole text
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusar_edge.data.tasks import Parsed, parse_answer
from fusar_edge.data.truth import Box, Target


@dataclass(frozen=True)
class Scored:
    """One question: its task, the reference answer and what the model said."""

    task: str
    reference: str
    said: Parsed
    confidence: float = 0.0
    id: str = ""
    question: str = ""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def matched_boxes(said: Sequence[Target], true: Sequence[Target], threshold: float) -> int:
    """One-to-one matches of the same label with IoU of at least `threshold`, best overlaps first."""
    pairs = [(iou(s.box, t.box), i, j) for i, s in enumerate(said) for j, t in enumerate(true) if s.label == t.label]
    used_said: set[int] = set()
    used_true: set[int] = set()
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= threshold and i not in used_said and j not in used_true:
            used_said.add(i)
            used_true.add(j)
    return len(used_said)


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def word_f1(said: str, reference: str) -> float:
    a, b = _words(said), _words(reference)
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


Rows = Sequence[tuple[float, ...]]
"""What each question contributes; a metric is a function of their column sums."""


def _interval(rows: Rows, figure: Callable[[np.ndarray], float], draws: int = 1000) -> list[float]:
    """95 % bootstrap interval over questions, seeded."""
    table = np.asarray(rows, np.float64)
    rng = np.random.default_rng(0)
    picks = rng.integers(len(table), size=(draws, len(table)))
    values = [figure(table[pick].sum(0)) for pick in picks]
    return [round(float(v), 4) for v in np.percentile(values, [2.5, 97.5])]


def _figure(rows: Rows, figure: Callable[[np.ndarray], float]) -> dict[str, Any]:
    value = figure(np.asarray(rows, np.float64).sum(0))
    return {"value": round(float(value), 4), "interval_95": _interval(rows, figure)}


def _mean(total: np.ndarray) -> float:
    return float(total[0] / total[-1])


def _f1(total: np.ndarray) -> float:
    """(matches, said, true) -> F1; nothing to find and nothing said is perfect."""
    return float(2 * total[0] / (total[1] + total[2])) if total[1] + total[2] else 1.0


def best_constant(references: Sequence[Any]) -> dict[str, Any]:
    """The single answer that is right most often on these very references, and how often."""
    answer, count = Counter(references).most_common(1)[0]
    return {"answer": answer, "accuracy": round(count / len(references), 4)}


def _count(rows: list[Scored]) -> dict[str, Any]:
    true = [parse_answer("count", r.reference).value for r in rows]
    right = [(float(r.said.value == t), 1.0) for r, t in zip(rows, true, strict=True)]
    errors = [abs(r.said.value - t) for r, t in zip(rows, true, strict=True) if r.said.ok]
    return {
        "accuracy": _figure(right, _mean),
        "mean_absolute_error": round(float(np.mean(errors)), 4) if errors else None,
        "best_constant": best_constant(true),
    }


def _grid(rows: list[Scored]) -> dict[str, Any]:
    exact, half, first = [], [], []
    true = [parse_answer("grid", r.reference).value for r in rows]
    for row, cells in zip(rows, true, strict=True):
        said, wanted = set(row.said.value or ()) if row.said.ok else None, set(cells)
        union = (said or set()) | wanted
        jaccard = len((said or set()) & wanted) / len(union) if union else 1.0
        exact.append((float(said == wanted), 1.0))
        half.append((float(said is not None and jaccard >= 0.5), 1.0))
        digits = re.findall(r"[1-9]", row.said.text)
        named = int(digits[0]) if digits and row.said.ok else None
        first.append((float(named in wanted if wanted else row.said.ok and named is None), 1.0))
    return {
        "acc_100": _figure(exact, _mean),
        "acc_50": _figure(half, _mean),
        "top_1": _figure(first, _mean),
        "best_constant": best_constant(true),
    }


def _classify(rows: list[Scored]) -> dict[str, Any]:
    right = [(float(r.said.value == r.reference.strip()), 1.0) for r in rows]
    return {"accuracy": _figure(right, _mean), "best_constant": best_constant([r.reference.strip() for r in rows])}


def _detect(rows: list[Scored]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for threshold in (0.25, 0.50):
        sums = []
        for row in rows:
            true = parse_answer("detect", row.reference).value or ()
            said = row.said.value or () if row.said.ok else ()
            sums.append((float(matched_boxes(said, true, threshold)), float(len(said)), float(len(true))))
        figures[f"f1_{threshold:.2f}"] = _figure(sums, _f1)
    return figures


def _caption(rows: list[Scored]) -> dict[str, Any]:
    fields, words = [], []
    for row in rows:
        true, said = parse_answer("caption", row.reference).value, row.said.value
        words.append((word_f1(row.said.text, row.reference), 1.0))
        if isinstance(true, dict):
            got = said if isinstance(said, dict) else {}
            fields.append((float(sum(got.get(k) == v for k, v in true.items())), float(len(true))))
    figures = {"word_f1": _figure(words, _mean)}
    if fields:
        figures["fields_right"] = _figure(fields, _mean)
    return figures


_METRICS: dict[str, Callable[[list[Scored]], dict[str, Any]]] = {
    "count": _count,
    "grid": _grid,
    "classify": _classify,
    "detect": _detect,
    "caption": _caption,
}


def task_metrics(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Task -> its metrics, with the number of questions and the share of answers that parse."""
    tasks: dict[str, list[Scored]] = {}
    for row in scored:
        tasks.setdefault(row.task, []).append(row)
    return {
        task: {
            "questions": len(rows),
            "parsed": round(sum(r.said.ok for r in rows) / len(rows), 4),
            **_METRICS[task](rows),
        }
        for task, rows in tasks.items()
    }

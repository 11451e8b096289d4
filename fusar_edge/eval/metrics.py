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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
Figure = Callable[[np.ndarray], float]
DRAWS = 1000
"""Of every bootstrap; all are seeded."""


def _mean(total: np.ndarray) -> float:
    return float(total[0] / total[-1])


def _f1(total: np.ndarray) -> float:
    """(matches, said, true) -> F1; nothing to find and nothing said is perfect."""
    return float(2 * total[0] / (total[1] + total[2])) if total[1] + total[2] else 1.0


@dataclass(frozen=True)
class Measure:
    """One metric; more is better."""

    rows: Rows
    """What each question contributes; the metric is a function of their column sums."""
    figure: Figure = _mean

    def value(self) -> float:
        return self.figure(np.asarray(self.rows, np.float64).sum(0))

    def successes(self) -> float:
        """What the metric counts: right answers, matched boxes, right fields; fractions of them where it is graded."""
        return float(sum(row[0] for row in self.rows))

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval over questions."""
        low, high = np.percentile([self.figure(t) for t in _draws(self.rows)], [2.5, 97.5])
        return float(low), float(high)

    def ratio_interval(self, other: Measure) -> tuple[float, float]:
        """95 % paired bootstrap interval of this metric over `other`'s on the same questions; NaN where that is 0."""
        pairs = zip(_draws(self.rows), _draws(other.rows), strict=True)
        values = [(self.figure(a), other.figure(b)) for a, b in pairs]
        ratios = [a / b for a, b in values if b]
        low, high = np.percentile(ratios, [2.5, 97.5]) if ratios else (np.nan, np.nan)
        return float(low), float(high)

    def as_figures(self) -> dict[str, Any]:
        return {"value": round(self.value(), 4), "interval_95": [round(v, 4) for v in self.interval()]}


def _draws(rows: Rows) -> Iterator[np.ndarray]:
    """Column sums of as many questions drawn with replacement; the same questions for tables of one length."""
    table = np.asarray(rows, np.float64)
    for pick in np.random.default_rng(0).integers(len(table), size=(DRAWS, len(table))):
        yield table[pick].sum(0)


def best_constant(references: Sequence[Any]) -> dict[str, Any]:
    """The single answer that is right most often on these very references, and how often."""
    answer, count = Counter(references).most_common(1)[0]
    return {"answer": answer, "accuracy": round(count / len(references), 4)}


def _share(right: Iterable[bool]) -> Measure:
    return Measure([(float(r), 1.0) for r in right])


def _count(rows: list[Scored]) -> dict[str, Measure]:
    return {"accuracy": _share(r.said.value == parse_answer("count", r.reference).value for r in rows)}


def _grid(rows: list[Scored]) -> dict[str, Measure]:
    exact, half, first = [], [], []
    for row in rows:
        wanted = set(parse_answer("grid", row.reference).value)
        said = set(row.said.value or ()) if row.said.ok else None
        union = (said or set()) | wanted
        jaccard = len((said or set()) & wanted) / len(union) if union else 1.0
        exact.append(said == wanted)
        half.append(said is not None and jaccard >= 0.5)
        digits = re.findall(r"[1-9]", row.said.text)
        named = int(digits[0]) if digits and row.said.ok else None
        first.append(named in wanted if wanted else row.said.ok and named is None)
    return {"acc_100": _share(exact), "acc_50": _share(half), "top_1": _share(first)}


def _classify(rows: list[Scored]) -> dict[str, Measure]:
    return {"accuracy": _share(r.said.value == r.reference.strip() for r in rows)}


def _detect(rows: list[Scored]) -> dict[str, Measure]:
    found = {}
    for threshold in (0.25, 0.50):
        sums = []
        for row in rows:
            true = parse_answer("detect", row.reference).value or ()
            said = row.said.value or () if row.said.ok else ()
            sums.append((float(matched_boxes(said, true, threshold)), float(len(said)), float(len(true))))
        found[f"f1_{threshold:.2f}"] = Measure(sums, _f1)
    return found


def _caption(rows: list[Scored]) -> dict[str, Measure]:
    fields, words = [], []
    for row in rows:
        true, said = parse_answer("caption", row.reference).value, row.said.value
        words.append((word_f1(row.said.text, row.reference), 1.0))
        if isinstance(true, dict):
            got = said if isinstance(said, dict) else {}
            fields.append((float(sum(got.get(k) == v for k, v in true.items())), float(len(true))))
    return {"word_f1": Measure(words)} | ({"fields_right": Measure(fields)} if fields else {})


def _beside(task: str, rows: list[Scored]) -> dict[str, Any]:
    """What is told of a task beside its measures."""
    if task == "classify":
        return {"best_constant": best_constant([r.reference.strip() for r in rows])}
    if task not in ("count", "grid"):
        return {}
    true = [parse_answer(task, r.reference).value for r in rows]
    constant = {"best_constant": best_constant(true)}
    if task == "grid":
        return constant
    errors = [abs(r.said.value - t) for r, t in zip(rows, true, strict=True) if r.said.ok]
    return {"mean_absolute_error": round(float(np.mean(errors)), 4) if errors else None, **constant}


_MEASURES: dict[str, Callable[[list[Scored]], dict[str, Measure]]] = {
    "count": _count,
    "grid": _grid,
    "classify": _classify,
    "detect": _detect,
    "caption": _caption,
}


def measures(scored: Sequence[Scored]) -> dict[str, dict[str, Measure]]:
    """Task -> its metrics by name, `parsed` (answers that parse) among them."""
    return {
        task: {"parsed": _share(row.said.ok for row in rows), **_MEASURES[task](rows)}
        for task, rows in _by_task(scored).items()
    }


def task_metrics(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Task -> its metrics, with the number of questions and the share of answers that parse."""
    found = {}
    for task, rows in _by_task(scored).items():
        figures = {name: measure.as_figures() for name, measure in _MEASURES[task](rows).items()}
        parsed = round(sum(r.said.ok for r in rows) / len(rows), 4)
        found[task] = {"questions": len(rows), "parsed": parsed, **figures, **_beside(task, rows)}
    return found


def _by_task(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    tasks: dict[str, list[Scored]] = {}
    for row in scored:
        tasks.setdefault(row.task, []).append(row)
    return tasks

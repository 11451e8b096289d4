"""Metrics against cases that a person can work out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.data.tasks import parse_answer
from fusar_edge.data.truth import Target
from fusar_edge.eval.metrics import Scored, best_constant, iou, matched_boxes, task_metrics, word_f1


def scored(task: str, pairs: list[tuple[str, str]]) -> list[Scored]:
    return [Scored(task, reference, parse_answer(task, said)) for reference, said in pairs]


def test_iou_of_known_boxes() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 4), max_size=6))
def test_boxes_match_themselves_one_to_one(numbers: list[tuple[int, int, int, int]]) -> None:
    targets = [Target((x, y, x + w + 1, y + h + 1), "ship") for x, y, w, h in numbers]
    assert matched_boxes(targets, targets, 0.5) == len(targets)
    assert matched_boxes(targets, [], 0.5) == 0


def test_one_box_cannot_match_two_targets() -> None:
    box = Target((0, 0, 10, 10), "ship")
    assert matched_boxes([box], [box, box], 0.5) == 1
    assert matched_boxes([Target((0, 0, 10, 10), "plane")], [box], 0.5) == 0


def test_counting_counts_what_does_not_parse_as_wrong() -> None:
    figures = task_metrics(scored("count", [("1", "1"), ("1", "many"), ("2", "4"), ("1", "1")]))["count"]
    assert figures["accuracy"]["value"] == 0.5
    assert figures["parsed"] == 0.75
    assert figures["mean_absolute_error"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["best_constant"] == {"answer": 1, "accuracy": 0.75}


def test_grid_metrics_on_full_partial_and_unparsed_answers() -> None:
    pairs = [("1, 2", "1, 2"), ("1, 2", "1"), ("5", "6"), ("None", "None"), ("3", "cell")]
    figures = task_metrics(scored("grid", pairs))["grid"]
    assert figures["acc_100"]["value"] == 0.4
    assert figures["acc_50"]["value"] == 0.6
    assert figures["top_1"]["value"] == 0.6


def test_detection_f1_is_micro_averaged() -> None:
    true = '[{"bbox_2d": [0, 0, 10, 10], "label": "ship"}, {"bbox_2d": [50, 50, 60, 60], "label": "ship"}]'
    said = '[{"bbox_2d": [0, 0, 10, 12], "label": "ship"}]'
    figures = task_metrics(scored("detect", [(true, said), ("None", "None")]))["detect"]
    assert figures["f1_0.50"]["value"] == pytest.approx(2 * 1 / 3, abs=1e-4)
    assert figures["f1_0.25"]["interval_95"][0] <= figures["f1_0.25"]["value"]


def test_a_perfect_detector_of_nothing_has_f1_one() -> None:
    assert task_metrics(scored("detect", [("None", "None")]))["detect"]["f1_0.50"]["value"] == 1.0


def test_word_f1_is_symmetric_and_bounded() -> None:
    assert word_f1("two ships", "two ships") == 1
    assert word_f1("a b c", "c d") == word_f1("c d", "a b c") == pytest.approx(0.4)
    assert word_f1("", "x") == 0


def test_the_best_constant_is_the_most_common_reference() -> None:
    assert best_constant([1, 1, 2]) == {"answer": 1, "accuracy": 0.6667}

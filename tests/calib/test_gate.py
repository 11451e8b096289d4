"""The gate's arithmetic, on answers whose metrics are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusar_edge.calib.gate import Check, stage_checks, task_checks, verdict
from fusar_edge.data.tasks import parse_answer
from fusar_edge.errors import GateError
from fusar_edge.eval.metrics import Measure, Scored
from fusar_edge.specs import GateSpec

GOOD = {
    "vision_cosine": 1.0,
    "vision_norm_off": 0.0,
    "logits_cosine": 1.0,
    "logits_norm_off": 0.0,
    "token_agreement": 1.0,
    "logits_kl": 0.0,
}


def counted(right: int, questions: int) -> list[Scored]:
    return [Scored("count", "1", parse_answer("count", "1" if place < right else "2")) for place in range(questions)]


def boxed(found: int, questions: int) -> list[Scored]:
    """One ship in each image, found in the first so many."""

    def box(x: int) -> str:
        return json.dumps([{"bbox_2d": [x, 0, x + 50, 50], "label": "ship"}])

    return [Scored("detect", box(0), parse_answer("detect", box(0 if i < found else 300))) for i in range(questions)]


def accuracy(int8: list[Scored], fp32: list[Scored], name: str = "count.accuracy") -> Check:
    return next(check for check in task_checks(int8, fp32, GateSpec()) if check.name == name)


@pytest.mark.parametrize(("right", "holds"), [(198, True), (197, False), (200, True)])
def test_a_metric_holds_from_99_percent_of_fp32s_on(right: int, holds: bool) -> None:
    check = accuracy(counted(right, 250), counted(200, 250))
    assert check.holds is holds
    assert check.value == pytest.approx(right / 200)
    assert check.interval_95 is not None
    assert check.interval_95[0] <= check.value <= check.interval_95[1]


def test_the_interval_is_paired_over_questions() -> None:
    same = accuracy(counted(120, 200), counted(120, 200))
    assert same.interval_95 == (1.0, 1.0)  # unpaired it would be about 0.84 to 1.18
    rows = [(float(value), 1.0) for value in np.random.default_rng(0).random(300) < 0.6]
    assert Measure(rows).ratio_interval(Measure(rows)) == (1.0, 1.0)


def test_what_fp32_hardly_ever_does_is_told_and_not_judged() -> None:
    check = accuracy(boxed(18, 176), boxed(20, 176), "detect.f1_0.25")
    assert check.holds is None
    assert check.value == pytest.approx(0.9)
    assert "FP32 succeeds 20 times" in check.note


def test_a_bootstrap_of_no_successes_is_not_believed() -> None:
    check = accuracy(boxed(0, 176), boxed(3, 176), "detect.f1_0.25")
    assert check.interval_95 == (0.0, 0.0)
    assert check.holds is None


def test_false_boxes_are_a_loss_too() -> None:
    """All of FP32's boxes, and nineteen wrong ones in each image."""
    wrong = [{"bbox_2d": [300 + 2 * k, 300, 310 + 2 * k, 310], "label": "ship"} for k in range(19)]
    rows = [
        Scored("detect", row.reference, parse_answer("detect", json.dumps([*json.loads(row.said.text), *wrong])))
        for row in boxed(20, 176)
    ]
    check = accuracy(rows, boxed(20, 176), "detect.f1_0.25")
    assert check.value == pytest.approx(0.1, abs=0.02)
    assert check.holds is False


def test_but_fails_where_it_is_surely_lost() -> None:
    assert accuracy(boxed(2, 176), boxed(20, 176), "detect.f1_0.25").holds is False
    assert accuracy(boxed(0, 176), boxed(20, 176), "detect.f1_0.25").holds is False
    assert accuracy(boxed(12, 176), boxed(20, 176), "detect.f1_0.25").holds is False


def test_few_questions_are_no_excuse() -> None:
    assert accuracy(counted(39, 60), counted(40, 60)).holds is False
    assert accuracy(counted(40, 60), counted(40, 60)).holds is True


def test_a_metric_that_is_zero_in_both_is_not_judged() -> None:
    check = accuracy(boxed(0, 176), boxed(0, 176), "detect.f1_0.25")
    assert check.holds is None
    assert accuracy(counted(0, 6), counted(0, 6)).holds is None
    assert json.loads(json.dumps(verdict([check], GateSpec(), None)))["checks"][0].get("value") is None


@pytest.mark.parametrize(
    ("figure", "value", "name"),
    [
        ("vision_cosine", 0.994, "vision_cosine"),
        ("vision_norm_off", 0.02, "vision_norm"),
        ("logits_norm_off", 0.06, "logits_norm"),
        ("logits_cosine", float("nan"), "logits_cosine"),
        ("token_agreement", 0.9, "token_agreement"),
        ("logits_kl", float("nan"), "logits_kl"),
    ],
)
def test_each_stage_has_its_bound_and_nan_is_beyond_it(figure: str, value: float, name: str) -> None:
    assert [c.name for c in stage_checks(GOOD, GateSpec()) if not c.holds] == []
    assert [c.name for c in stage_checks(GOOD | {figure: value}, GateSpec()) if not c.holds] == [name]


def test_a_failing_check_is_told_with_its_figure_its_interval_and_what_to_do() -> None:
    checks = task_checks(counted(150, 250), counted(200, 250), GateSpec())
    with pytest.raises(
        GateError, match=r"1 of 2 checks: count\.accuracy 0\.75 \[0\.\d+, 0\.\d+\], at least 0\.99 .*--waive"
    ):
        verdict(checks, GateSpec(), None)


def test_nothing_checked_is_nothing_held() -> None:
    record = verdict([], GateSpec(), "no FP32 at hand")
    assert (record["holds"], record["waiver"]) == (False, "no FP32 at hand")

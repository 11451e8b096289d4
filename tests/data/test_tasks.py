"""Prompts, answers and total parsers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.data import tasks
from fusar_edge.data.truth import CAPTION_FIELDS, COORDINATE_SIZE, Target, Truth, clipped, grid_cell

coordinates = st.floats(-200, 700, allow_nan=False)
boxes = st.tuples(coordinates, coordinates, st.floats(1, 300), st.floats(1, 300)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
truths = st.lists(boxes, max_size=12).map(lambda found: Truth(tuple(Target(b, "ship") for b in found)))


@given(st.sampled_from(tasks.TASKS), st.text())
def test_no_text_makes_a_parser_raise(task: str, text: str) -> None:
    parsed = tasks.parse_answer(task, text)
    assert parsed.text == text
    assert parsed.ok == (parsed.value is not None)


@given(st.sampled_from(tasks.TASKS), st.text(alphabet='0123456789[]{},:-."None bx_2dlabeship', max_size=400))
def test_text_that_looks_like_an_answer_does_not_make_a_parser_raise(task: str, text: str) -> None:
    tasks.parse_answer(task, text)


@given(truths)
def test_every_answer_made_from_truth_parses_to_that_truth(truth: Truth) -> None:
    visible = tasks.visible_targets(truth)
    assert tasks.parse_answer("count", tasks.count_answer(truth)).value == len(visible)
    cells = {grid_cell(t.box) for t in visible}
    assert set(tasks.parse_answer("grid", tasks.grid_answer(truth)).value) == cells
    said = tasks.parse_answer("detect", tasks.detect_answer(visible))
    whole = [t for t in visible if round(t.box[2]) > round(t.box[0]) and round(t.box[3]) > round(t.box[1])]
    if len(whole) == len(visible):
        assert said.ok
        assert [t.box for t in said.value] == [tuple(map(float, map(round, t.box))) for t in visible]


@given(truths)
def test_visible_targets_lie_inside_the_frame(truth: Truth) -> None:
    for target in tasks.visible_targets(truth):
        x1, y1, x2, y2 = target.box
        assert 0 <= x1 < x2 <= COORDINATE_SIZE
        assert 0 <= y1 < y2 <= COORDINATE_SIZE


def test_the_official_box_that_leaves_the_frame_is_clipped() -> None:
    answer = '[{"bbox_2d": [-35, 134, 95, 246], "label": "plane"}]'
    assert tasks.parse_answer("detect", answer).value == (Target((0, 134, 95, 246), "plane"),)
    assert clipped((-35, 134, -1, 246)) is None


def test_a_detection_that_was_cut_short_keeps_its_complete_boxes() -> None:
    text = '[{"bbox_2d": [1, 2, 30, 40], "label": "ship"}, {"bbox_2d": [50, 60'
    assert tasks.parse_answer("detect", text).value == (Target((1, 2, 30, 40), "ship"),)


@pytest.mark.parametrize("text", ["", "ships", "[1, 2, 3, 4]", '[{"bbox_2d": [9, 9, 9, 9], "label": "ship"}]'])
def test_a_detection_without_a_box_is_not_parsed(text: str) -> None:
    assert not tasks.parse_answer("detect", text).ok


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("3.", 3), ("None", 0), ("seven", 7), ("about 3", None), ("9" * 5000, None), ("-1", None)],
)
def test_counts(text: str, value: int | None) -> None:
    assert tasks.parse_answer("count", text).value == value


@pytest.mark.parametrize(
    ("text", "value"), [("5", (5,)), ("[2, 1, 2]", (1, 2)), ("None", ()), ("0", None), ("10", None), ("1 2", None)]
)
def test_grid_cells(text: str, value: tuple[int, ...] | None) -> None:
    assert tasks.parse_answer("grid", text).value == value


@pytest.mark.parametrize(
    ("box", "cell"), [((0, 0, 10, 10), 1), ((250, 250, 254, 254), 5), ((490, 490, 504, 504), 9), ((160, 0, 180, 9), 2)]
)
def test_grid_cells_are_numbered_row_by_row(box: tuple[float, float, float, float], cell: int) -> None:
    assert grid_cell(box) == cell


def test_a_caption_in_eight_fields_parses_to_its_fields() -> None:
    fields = {name: f"some {name.lower()}" for name in CAPTION_FIELDS}
    assert tasks.parse_answer("caption", tasks.fields_text(fields)).value == fields
    assert tasks.parse_answer("caption", "Terrain: sea").value == "Terrain: sea"


def test_the_detection_question_is_the_official_one() -> None:
    prompt = tasks.detect_prompt("plane")
    assert prompt.startswith("This is a SAR image. Please carefully check the image and detect the following object: ")
    assert prompt.endswith("If there are no such targets in the image, simply respond with None.")
    assert "plane. Output each detected target's bbox coordinates in JSON format." in prompt


def test_detection_answers_have_the_official_json_form() -> None:
    rows = json.loads(tasks.detect_answer([Target((1.4, 2.6, 30, 40), "ship")]))
    assert rows == [{"bbox_2d": [1, 3, 30, 40], "label": "ship"}]
    assert tasks.detect_answer([]) == "None"


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of"):
        tasks.canonical_prompt("segment")

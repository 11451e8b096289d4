"""The official manifest, as JSON and as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusar_edge.data.tasks import count_prompt, detect_prompt
from fusar_edge.data.triplets import (
    box_of_question,
    label_of_question,
    read_triplets,
    task_of_question,
    truth_of_image,
)
from fusar_edge.data.truth import Target
from fusar_edge.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.npz").write_bytes(b"x")
    return tmp_path


def written(folder: Path, rows: list[Any], name: str = "m.jsonl") -> Path:
    path = folder / name
    lines = "\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(rows) if name.endswith(".json") else lines + "\n\n")
    return path


OFFICIAL = {
    "id": 7,
    "image": "a.png",
    "aef": "a.npz",
    "question": detect_prompt("plane"),
    "answer": [{"bbox_2d": [-35, 134, 95, 246], "label": "plane"}],
    "coordinate_size": 504,
    "source": "a key that we do not know",
}


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_an_official_record_is_read_from_both_forms(folder: Path, name: str) -> None:
    (triplet,) = read_triplets(written(folder, [OFFICIAL], name))
    assert (triplet.image, triplet.aef, triplet.id) == (folder / "a.png", folder / "a.npz", "7")
    assert triplet.task == "detect"
    assert json.loads(triplet.answer) == OFFICIAL["answer"]


def test_a_task_alone_gives_its_canonical_question(folder: Path) -> None:
    (triplet,) = read_triplets(written(folder, [{"image": "a.png", "task": "count", "answer": 3}]))
    assert (triplet.question, triplet.answer) == (count_prompt(), "3")


def test_the_truth_of_an_image_keeps_a_box_that_leaves_the_frame(folder: Path) -> None:
    truth = truth_of_image(read_triplets(written(folder, [OFFICIAL])))
    assert truth is not None
    assert truth.targets == (Target((-35.0, 134.0, 95.0, 246.0), "plane"),)
    assert truth.label == "plane"


def test_questions_tell_their_task_label_and_box() -> None:
    assert task_of_question("What is the class of the target in the box [1, 2, 3, 4]?") == "classify"
    assert box_of_question("What is the class of the target in the box [1, 2, 3, 4]?") == (1, 2, 3, 4)
    assert label_of_question(count_prompt("tank")) == "tank"
    assert task_of_question("Is this a ship?") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "answer": "3"}, r"m\.jsonl:1: neither `question` nor `task`"),
        ({"image": "a.png", "task": "segment", "answer": "3"}, "'segment' is not one of"),
        ({"image": "b.png", "task": "count", "answer": "3"}, r"b\.png does not exist"),
        ({"image": "a.png", "aef": "b.npz", "task": "count", "answer": "3"}, r"b\.npz does not exist"),
        ({"task": "count", "answer": "3"}, r"m\.jsonl:1: .*image"),
        ({"image": "a.png", "task": "count"}, r"m\.jsonl:1: .*answer"),
        ({"image": "a.png", "task": "count", "answer": "3", "coordinate_size": 1024}, "coordinate_size 1024"),
        ({"image": "a.png", "task": "classify", "answer": "ship"}, "names the box"),
        ("text", "a record is a JSON object, not str"),
    ],
)
def test_a_bad_record_is_refused_with_its_line(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_triplets(written(folder, [row]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no records"),
        (b"{broken", r"m\.jsonl:1: not valid JSON"),
        (b"[1,", "not valid JSON"),
        (b"\xff\xfe", "text"),
    ],
)
def test_a_broken_manifest_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_triplets(path)
    assert "m.jsonl" in str(caught.value)


def test_a_manifest_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        read_triplets(tmp_path / "none.jsonl")

"""MSTAR folders -> triplet rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusar_edge.data.converters import convert
from fusar_edge.data.triplets import read_triplets
from fusar_edge.errors import DataError


def make_mstar(folder: Path, classes: tuple[str, ...] = ("T62", "BRDM_2"), number: int = 40) -> Path:
    for label in classes:
        (folder / label).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(np.full((16, 16), index, np.uint8)).save(folder / label / f"HB{index:05d}.JPG")
    return folder


def test_each_chip_is_one_question_for_the_class_of_the_whole_frame(tmp_path: Path) -> None:
    manifest = convert("mstar", make_mstar(tmp_path / "src"), tmp_path / "out")
    parts = {
        part: [json.loads(line) for line in (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "val")
    }
    rows = parts["train"] + parts["val"]
    assert len(rows) == manifest.figures["images"] == 80
    assert {row["task"] for row in rows} == {"classify"}
    assert {row["question"] for row in rows} == {"What is the class of the target in the box [0, 0, 504, 504]?"}
    assert all(row["answer"] == Path(row["image"]).parent.name for row in rows)
    assert 0.08 < len(parts["val"]) / 80 < 0.35
    assert manifest.settings["classes"] == ["BRDM_2", "T62"]
    assert read_triplets(tmp_path / "out/val.jsonl")[0].image.is_file()


def test_the_split_is_the_same_each_time(tmp_path: Path) -> None:
    src = make_mstar(tmp_path / "src")
    assert convert("mstar", src, tmp_path / "a").files == convert("mstar", src, tmp_path / "b").files


def test_a_folder_without_classes_a_class_without_chips_and_a_broken_chip_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no class folder"):
        convert("mstar", tmp_path / "none", tmp_path / "out")
    src = make_mstar(tmp_path / "src", number=2)
    (src / "EMPTY").mkdir()
    with pytest.raises(DataError, match="EMPTY holds no image"):
        convert("mstar", src, tmp_path / "out")
    (src / "EMPTY").rmdir()
    (src / "T62/HB00001.JPG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"HB00001\.JPG cannot be read"):
        convert("mstar", src, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mstar_itself_converts(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for label in ("2S1", "BRDM_2"):  # two of the seven classes, to save time
        (tmp_path / "src" / label).symlink_to((real_data / "mstar/17_DEG" / label).resolve())
    figures = convert("mstar", tmp_path / "src", tmp_path / "out").figures
    assert figures["images"] > 500
    assert 0.15 < figures["val"] / figures["images"] < 0.25

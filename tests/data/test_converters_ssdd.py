"""SSDD folders -> triplet rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusar_edge.data.converters import convert
from fusar_edge.data.converters.image import thumbnail_from_file
from fusar_edge.data.converters.split import block_name, near_duplicates, train_and_val, val_by_block
from fusar_edge.data.triplets import read_triplets
from fusar_edge.errors import DataError, OutputExistsError
from fusar_edge.manifest import read_manifest, verify_files


def voc_text(width: int, height: int, boxes: list[tuple[int, int, int, int]], name: str = "ship") -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for x1, y1, x2, y2 in boxes
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def make_ssdd(folder: Path, number: int = 1, layout: tuple[str, str] = ("images", "annotations")) -> Path:
    images, annotations = (folder / name for name in layout)
    images.mkdir(parents=True)
    annotations.mkdir()
    rng = np.random.default_rng(0)
    for index in range(1, number + 1):
        Image.fromarray(rng.integers(0, 255, (50, 100), dtype=np.uint8)).save(images / f"{index:06d}.jpg")
        (annotations / f"{index:06d}.xml").write_text(voc_text(100, 50, [(10, 20, 30, 40)]))
    return folder


def rows_of(out: Path, part: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"{part}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", [("images", "annotations"), ("JPEGImages", "Annotations")])
def test_both_layouts_are_read_and_boxes_scale_by_width_and_height_apart(
    layout: tuple[str, str], tmp_path: Path
) -> None:
    convert("ssdd", make_ssdd(tmp_path / "src", layout=layout), tmp_path / "out")
    rows = rows_of(tmp_path / "out", "train") + rows_of(tmp_path / "out", "val")
    answers = {row["task"]: row["answer"] for row in rows}
    assert answers["detect"] == [{"bbox_2d": [50, 202, 151, 403], "label": "ship"}]  # x 504 / 100, y 504 / 50
    assert answers["count"] == "1"
    assert answers["grid"] == "4"
    assert answers["classify"] == "ship"
    assert all("aef" not in row and row["coordinate_size"] == 504 for row in rows)


def test_the_folder_is_self_contained_and_sealed(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    src = make_ssdd(tmp_path / "src", 60)
    convert("ssdd", src, tmp_path / "out", progress=lambda a, b: done.append((a, b)))
    manifest = read_manifest(tmp_path / "out")
    verify_files(tmp_path / "out", manifest)
    assert manifest.stage == "convert"
    assert {"train.jsonl", "val.jsonl", "images/000007.jpg"} <= manifest.files.keys()
    assert not (tmp_path / "out/images/000007.jpg").is_symlink()
    assert {"source", "licence", "split"} <= manifest.settings.keys()
    assert done[-1] == (60, 60)
    for part in ("train", "val"):
        triplets = read_triplets(tmp_path / "out" / f"{part}.jsonl")
        assert all(t.image.is_relative_to(tmp_path / "out/images") for t in triplets)
    assert (tmp_path / "out/images/000007.jpg").read_bytes() == (src / "images/000007.jpg").read_bytes()


def test_at_most_three_classify_rows_an_image_and_none_without_ships(tmp_path: Path) -> None:
    src = make_ssdd(tmp_path / "src", 2)
    (src / "annotations/000001.xml").write_text(voc_text(100, 50, [(i * 10, 5, i * 10 + 8, 9) for i in range(6)]))
    (src / "annotations/000002.xml").write_text(voc_text(100, 50, []))
    convert("ssdd", src, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "train") + rows_of(tmp_path / "out", "val")
    assert [r["id"] for r in rows if r["task"] == "classify"] == [f"000001/classify-{n}" for n in (1, 2, 3)]
    assert {r["task"]: r["answer"] for r in rows if r["id"].startswith("000002")} == {
        "count": "0",
        "grid": "None",
        "detect": "None",
        "caption": "A SAR image with no ship targets.",
    }


def broken_xml(src: Path) -> str:
    (src / "annotations/000002.xml").write_text("<annotation><size>")
    return r"000002\.xml.*XML"


def reversed_box(src: Path) -> str:
    (src / "annotations/000002.xml").write_text(voc_text(100, 50, [(30, 20, 10, 40)]))
    return r"000002\.xml.*\[30, 20, 10, 40\]"


def text_for_a_number(src: Path) -> str:
    text = voc_text(100, 50, [(1, 2, 3, 4)]).replace("<xmin>1", "<xmin>left")
    (src / "annotations/000002.xml").write_text(text)
    return r"000002\.xml.*xmin.*left"


def no_size(src: Path) -> str:
    (src / "annotations/000002.xml").write_text("<annotation></annotation>")
    return r"000002\.xml.*size"


def other_class(src: Path) -> str:
    (src / "annotations/000002.xml").write_text(voc_text(100, 50, [(1, 2, 3, 4)], name="plane"))
    return r"000002\.xml.*plane"


def other_size(src: Path) -> str:
    (src / "annotations/000002.xml").write_text(voc_text(64, 50, []))
    return r"000002\.xml.*\(64, 50\)"


def no_image(src: Path) -> str:
    (src / "images/000002.jpg").unlink()
    return r"000002\.xml has no image"


def no_annotation(src: Path) -> str:
    (src / "annotations/000002.xml").unlink()
    return r"000002\.jpg has no annotation"


def cut_image(src: Path) -> str:
    path = src / "images/000002.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return r"000002\.jpg cannot be read"


def empty_folder(src: Path) -> str:
    for path in [*src.glob("*/*")]:
        path.unlink()
    return "empty"


def not_ssdd(src: Path) -> str:
    (src / "annotations").rename(src / "labels")
    return "not an SSDD folder"


@pytest.mark.parametrize(
    "damage",
    [
        broken_xml,
        reversed_box,
        text_for_a_number,
        no_size,
        other_class,
        other_size,
        no_image,
        no_annotation,
        cut_image,
        empty_folder,
        not_ssdd,
    ],
)
def test_bad_input_is_named_and_leaves_nothing(damage: Callable[[Path], str], tmp_path: Path) -> None:
    src = make_ssdd(tmp_path / "src", 3)
    message = damage(src)
    with pytest.raises(DataError, match=message):
        convert("ssdd", src, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_unknown_kind_missing_folder_and_existing_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ssdd, mstar"):
        convert("hrsid", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="not a folder"):
        convert("ssdd", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        convert("ssdd", make_ssdd(tmp_path / "src"), tmp_path / "out")


def test_images_of_a_block_stay_together() -> None:
    assert block_name("000020") == block_name("000039") != block_name("000040")
    assert block_name("harbour") == "harbour"
    stems = [f"{n:06d}" for n in range(1, 1001)]
    val = val_by_block(stems)
    assert 0.18 <= val.mean() <= 0.22
    for block in {block_name(stem) for stem in stems}:
        assert len({bool(v) for v, stem in zip(val, stems, strict=True) if block_name(stem) == block}) == 1


def test_a_near_duplicate_of_a_training_image_leaves_validation() -> None:
    stems = [f"{n:06d}" for n in range(1, 201)]
    thumbnails = np.random.default_rng(0).normal(100, 20, (200, 32, 32)).astype(np.float32)
    val, found = train_and_val(stems, thumbnails)
    assert found == {"near_duplicate_pairs": 0, "near_duplicate_pairs_across_blocks": 0, "moved_to_train": 0}
    inside, outside = np.flatnonzero(val)[0], np.flatnonzero(~val)[0]
    thumbnails[inside] = thumbnails[outside] * 1.2 + 3  # the same view, stretched
    again, found = train_and_val(stems, thumbnails)
    assert found == {"near_duplicate_pairs": 1, "near_duplicate_pairs_across_blocks": 1, "moved_to_train": 1}
    assert not again[inside]
    assert again.sum() == val.sum() - 1


def test_ssdd_itself_converts_with_no_near_duplicate_across_the_split(real_data: Path, tmp_path: Path) -> None:
    manifest = convert("ssdd", real_data / "ssdd", tmp_path / "out")
    assert manifest.figures["images"] == 913
    assert 0.17 < manifest.figures["val"] / 913 < 0.23
    images = {part: {r["image"] for r in rows_of(tmp_path / "out", part)} for part in ("train", "val")}
    assert not images["train"] & images["val"]
    names = sorted(images["train"] | images["val"])
    same = near_duplicates(np.stack([thumbnail_from_file(tmp_path / "out" / name)[1] for name in names]))
    val = np.array([name in images["val"] for name in names])
    assert not same[val][:, ~val].any()

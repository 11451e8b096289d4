"""Training images: one grey, whatever the file format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusar_edge.errors import DataError, SceneError
from fusar_edge.sar.image import grey_from_file, resized
from fusar_edge.sar.radiometry import Radiometry, grey_from_values
from fusar_edge.sar.scene import open_scene
from fusar_edge.sar.tiles import TileWindow

WriteScene = Callable[..., Path]
LEVELS = np.random.default_rng(3).integers(0, 256, (20, 30), dtype=np.uint8)


def _saved(folder: Path, picture: Image.Image, name: str = "i.png") -> Path:
    picture.save(folder / name)
    return folder / name


def test_grey_rgb_palette_and_opaque_rgba_are_the_same_image(tmp_path: Path) -> None:
    grey = Image.fromarray(LEVELS)
    for mode in ("L", "RGB", "P", "RGBA", "LA"):
        read = grey_from_file(_saved(tmp_path, grey.convert(mode), f"{mode}.png"))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, LEVELS.astype(np.float32) / np.float32(255))


def test_a_plain_tiff_is_the_same_image_as_a_png(tmp_path: Path) -> None:
    picture = Image.fromarray(np.stack([LEVELS, LEVELS.T.reshape(20, 30), LEVELS[::-1]], -1))
    np.testing.assert_array_equal(
        grey_from_file(_saved(tmp_path, picture, "i.tif")), grey_from_file(_saved(tmp_path, picture))
    )


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    alpha = np.full_like(LEVELS, 255)
    alpha[:, :5] = 0
    grey = grey_from_file(_saved(tmp_path, Image.fromarray(np.stack([LEVELS | 1, alpha], -1), "LA")))
    assert (grey[:, :5] == 0).all()
    assert (grey[:, 5:] > 0).all()


def test_a_geotiff_is_read_as_the_runtime_reads_it(write_scene: WriteScene) -> None:
    db = np.random.default_rng(0).normal(-15, 4, (20, 30)).astype(np.float32)
    path = write_scene(db)
    with open_scene(path, radiometry=Radiometry(db_white=-5)) as scene:
        runtime = scene.read(TileWindow(0, 0, 20, 30)).grey
    np.testing.assert_array_equal(grey_from_file(path, Radiometry(db_white=-5)), runtime)


def test_a_float_chip_needs_no_place(write_scene: WriteScene) -> None:
    power = np.full((20, 30), 0.04, np.float32)
    expected = grey_from_values(power, "power", Radiometry())
    np.testing.assert_array_equal(grey_from_file(write_scene(power, nowhere=True)), expected)


def test_resizing_is_pillows_bicubic_to_a_square(tmp_path: Path) -> None:
    levels = Image.fromarray(LEVELS // 2 + 60)  # away from 0 and 255: Pillow clips 8-bit images between its two passes
    official = levels.resize((48, 48), Image.Resampling.BICUBIC)  # 8-bit, as the official code does
    ours = resized(grey_from_file(_saved(tmp_path, levels)), 48)
    assert (ours.shape, ours.dtype) == ((48, 48), np.float32)
    assert np.abs(ours - np.asarray(official) / 255).max() < 1.5 / 255


def test_resizing_does_not_ring_out_of_the_range() -> None:
    edge = np.zeros((20, 20), np.float32)
    edge[:, 10:] = 1.0
    assert (resized(edge, 48).min(), resized(edge, 48).max()) == (0.0, 1.0)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    grey = np.random.default_rng(0).random((32, 32), np.float32)
    np.testing.assert_array_equal(resized(grey, 32), grey)


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.tif"])
@pytest.mark.parametrize("keep", [0, 50, -150])
def test_an_empty_or_cut_image_is_refused_by_name(tmp_path: Path, name: str, keep: int) -> None:
    path = _saved(tmp_path, Image.fromarray(LEVELS), name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((DataError, SceneError)) as caught:
        grey_from_file(path)
    assert str(path) in str(caught.value)
    assert ("is empty" in str(caught.value)) == (keep == 0)


@pytest.mark.parametrize(("name", "why"), [("i.png", "no image"), ("i.tiff", "not a readable"), ("i.txt", "allowed")])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).write_text("some text")
    with pytest.raises((DataError, SceneError), match=rf"{name}.*{why}"):
        grey_from_file(tmp_path / name)


@pytest.mark.parametrize("name", ["i.png", "i.tiff"])
def test_an_image_that_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises((DataError, SceneError), match=rf"{name}.*no such file"):
        grey_from_file(tmp_path / name)


def test_sixteen_bit_pictures_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path, Image.fromarray(LEVELS.astype(np.uint16) * 257))
    with pytest.raises(DataError, match="8 bits"):
        grey_from_file(path)


def test_a_picture_that_unfolds_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path, Image.fromarray(LEVELS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="exceeds limit"):
        grey_from_file(path)

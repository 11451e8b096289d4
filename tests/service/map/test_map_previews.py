"""The small copies of large scenes, and the scenes that the map keeps open."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from map_scenes import dots, opened_png, tile_over, write_scene

from fusar_edge.errors import SceneError
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY
from fusar_edge.sar.scene import Scene, open_scene
from fusar_edge.sar.tiles import TileWindow
from fusar_edge.service.map import opened, preview
from fusar_edge.service.map.opened import OpenScenes
from fusar_edge.service.map.preview import Previews, preview_factor, read_preview, write_preview
from fusar_edge.service.map.xyz import native_zoom, paint_tile


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene of 700 px is a large one."""
    monkeypatch.setattr(preview, "DIRECT_PX", 256)
    monkeypatch.setattr(preview, "PREVIEW_PX", 128)
    monkeypatch.setattr(preview, "BLOCK_PX", 300)


@pytest.fixture
def large(tmp_path: Path, small_limits: None) -> Path:
    return write_scene(tmp_path / "large.tif", dots(500, 701))


@pytest.fixture
def previews(tmp_path: Path) -> Iterator[Previews]:
    made = Previews(tmp_path / "previews")
    yield made
    made.stop()


def test_no_copy_is_made_of_a_scene_that_is_small_enough() -> None:
    assert preview_factor(2048, 1000) == 0
    assert preview_factor(29_400, 24_400) == 8


def test_a_copy_holds_the_root_mean_square_of_each_square(large: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.tif"
    with open_scene(large) as scene:
        write_preview(scene, path)
        grey = scene.read(TileWindow(0, 0, 500, 701)).grey
    factor = preview_factor(701, 500)
    assert factor == 6
    got = read_preview(path, TileWindow(0, 0, 84, 117), (84, 117))
    expected = np.sqrt(np.square(grey[:498, :696]).reshape(83, 6, 116, 6).mean(axis=(1, 3))) * 255
    np.testing.assert_allclose(got[0, :83, :116], expected, atol=0.51)
    assert (got[1] == 255).all()


def test_pixels_without_value_do_not_darken_a_copy(tmp_path: Path, small_limits: None) -> None:
    values = np.full((400, 400), 200, np.uint8)
    values[:, ::2] = 0
    values[:, 200:] = 0
    with open_scene(write_scene(tmp_path / "s.tif", values, nodata=0)) as scene:
        write_preview(scene, tmp_path / "copy.tif")
    grey, alpha = read_preview(tmp_path / "copy.tif", TileWindow(0, 0, 100, 100), (100, 100))
    assert (grey[:, :50] == 200).all()
    assert alpha[:, :50].all()
    assert not alpha[:, 50:].any()


def test_low_zooms_are_drawn_from_the_copy_and_look_the_same(large: Path, tmp_path: Path) -> None:
    with open_scene(large) as scene:
        copy = tmp_path / "copy.tif"
        write_preview(scene, copy)
        zoom = native_zoom(scene) - 3
        place = tile_over(scene, 350, 250, zoom)
        from_copy = paint_tile(scene, copy, zoom, *place)
        preview.DIRECT_PX = 10_000  # the fixture puts it back
        from_scene = paint_tile(scene, None, zoom, *place)
    assert from_copy is not None
    assert from_scene is not None
    assert from_copy != from_scene
    a, b = (opened_png(png).astype(float) for png in (from_copy, from_scene))
    inside = (a[1] > 0) & (b[1] > 0)
    assert inside.sum() > 0.9 * (b[1] > 0).sum()
    assert np.abs(a[0] - b[0])[inside].mean() < 12
    assert np.corrcoef(a[0][inside], b[0][inside])[0, 1] > 0.7


def test_without_its_copy_a_large_scene_has_no_low_zooms_but_high_ones(large: Path) -> None:
    with open_scene(large) as scene:
        zoom = native_zoom(scene)
        assert paint_tile(scene, None, zoom - 5, *tile_over(scene, 350, 250, zoom - 5)) is None
        assert paint_tile(scene, None, zoom, *tile_over(scene, 350, 250, zoom)) is not None


def test_a_copy_is_made_once_in_the_background(large: Path, previews: Previews) -> None:
    go, times = threading.Event(), []

    def slowly() -> Scene:
        times.append(1)
        assert go.wait(10)
        return open_scene(large)

    assert previews.state("a" * 16, slowly) == ("making", "")
    assert previews.state("a" * 16, slowly) == ("making", "")
    go.set()
    assert previews.settled(10)
    assert previews.state("a" * 16, slowly) == ("ready", "")
    assert times == [1]


def test_a_scene_that_cannot_be_read_has_no_copy_and_says_why_without_its_path(large: Path, previews: Previews) -> None:
    cut = large.read_bytes()
    large.write_bytes(cut[: len(cut) * 2 // 3])
    previews.state("b" * 16, lambda: open_scene(large))
    assert previews.settled(10)
    state, reason = previews.state("b" * 16, lambda: open_scene(large))
    assert state == "failed"
    assert reason
    assert "/" not in reason
    assert not list(previews.folder.glob("*")) if previews.folder.is_dir() else True


def test_a_copy_that_is_given_up_leaves_nothing(large: Path, tmp_path: Path) -> None:
    with open_scene(large) as scene:
        write_preview(scene, tmp_path / "copies" / "c.tif", lambda: True)
    assert not list((tmp_path / "copies").glob("*"))


def test_a_sweep_keeps_the_copies_of_known_scenes_alone(previews: Previews) -> None:
    previews.folder.mkdir()
    for name in ("known.tif", "gone.tif", ".known.123.tif"):
        (previews.folder / name).touch()
    previews.sweep(lambda scene_id: scene_id == "known")
    assert [path.name for path in previews.folder.iterdir()] == ["known.tif"]


def test_a_scene_is_opened_once_and_used_again(large: Path) -> None:
    scenes, stat = OpenScenes(DEFAULT_RADIOMETRY), large.stat()
    with scenes.use(large, stat.st_size, stat.st_mtime_ns) as first:
        pass
    with scenes.use(large, stat.st_size, stat.st_mtime_ns) as second:
        assert second is first
        with scenes.use(large, stat.st_size, stat.st_mtime_ns) as third:
            assert third is not first
    scenes.close()


def test_only_a_few_scenes_are_kept_open(tmp_path: Path) -> None:
    scenes, used = OpenScenes(DEFAULT_RADIOMETRY), []
    for number in range(opened.KEPT + 2):
        path = write_scene(tmp_path / f"{number}.tif", dots(20, 20, 10))
        with scenes.use(path, path.stat().st_size, path.stat().st_mtime_ns) as scene:
            used.append(scene)
    assert sum(not scene._dataset.closed for scene in used) == opened.KEPT
    scenes.close()
    assert all(scene._dataset.closed for scene in used)


def test_a_file_that_was_changed_or_removed_is_not_shown(large: Path) -> None:
    scenes, stat = OpenScenes(DEFAULT_RADIOMETRY), large.stat()
    os.utime(large, ns=(0, stat.st_mtime_ns + 1))
    with pytest.raises(SceneError, match="was changed"), scenes.use(large, stat.st_size, stat.st_mtime_ns):
        pass
    large.unlink()
    with pytest.raises(SceneError, match="is gone"), scenes.use(large, stat.st_size, stat.st_mtime_ns):
        pass

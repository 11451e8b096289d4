"""What the header is held to, and the child that opens a file first."""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed_files import geotiff, good_files
from small_scenes import small_scene

from fusar_edge.errors import SceneError
from fusar_edge.service.intake.names import safe_name
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.intake.tiff_header import read_header
from fusar_edge.service.intake.untrusted import check, check_header
from fusar_edge.service.settings import LimitSettings


@pytest.fixture
def tif(tmp_path: Path) -> Path:
    path = tmp_path / "secret-folder" / "s.part"
    path.parent.mkdir()
    path.write_bytes(small_scene())
    return path


class Scripted(Prober):
    """Children that do as they are told, one after the other; then the real one."""

    def __init__(self, *scripts: str, timeout_s: float = 60.0) -> None:
        super().__init__(timeout_s)
        self.scripts = list(scripts)

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self.scripts.pop(0)] if self.scripts else super()._command()


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("../../etc/passwd", "passwd.tif"),
        ("C:\\x\\scene one.TIFF", "scene_one.tif"),
        ("", "scene.tif"),
        ("..", "scene.tif"),
        (".tif", "scene.tif"),
        ("-rf.tif", "rf.tif"),
        (".hidden.tif", "hidden.tif"),
        ("x.tif.msk", "x.tif.msk.tif"),
        ("a\x00b\n\u202ec.tif", "a_b__c.tif"),
        ("船舶-3.tif", "船舶-3.tif"),
        ("S1A_IW_GRDH_1SDV_20210105T015004_20210105T015029_036000_0437BD_1E2D.tiff",
         "S1A_IW_GRDH_1SDV_20210105T015004_20210105T015029_036000_0437BD_1E2D.tif"),
    ],
)  # fmt: skip
def test_a_name_is_made_safe(given: str, safe: str) -> None:
    assert safe_name(given) == safe


@pytest.mark.parametrize("given", ["é" * 300, "a" * 300 + ".tif", "\ud800", "." * 200])
def test_a_safe_name_is_short_and_utf8(given: str) -> None:
    name = safe_name(given)
    assert len(name.encode()) <= 120
    assert name.endswith(".tif")
    assert not name.startswith((".", "-"))


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 48}, {"BIGTIFF": "YES"}])
def test_the_header_says_what_gdal_says(tmp_path: Path, options: dict[str, Any]) -> None:
    import rasterio

    path = tmp_path / "s.tif"
    path.write_bytes(geotiff(np.ones((3, 100, 200), np.int16), interleave="pixel", **options))
    found = read_header(path, "s.tif")[0]
    with rasterio.open(path) as file:
        assert (found.width, found.height, found.samples) == (file.width, file.height, file.count)
        assert (found.block_height, found.block_width) == file.block_shapes[0]
    assert (found.bits, found.sample_format, found.compression, found.interleaved) == (16, 2, 1, True)
    assert found.raw_bytes >= 3 * 100 * 200 * 2


def test_real_products_pass(real_data: Path) -> None:
    for path in (real_data / "scenes").rglob("*.tif*"):
        check_header(path, path.name, LimitSettings())


def test_bounds_are_the_settings(tif: Path) -> None:
    check_header(tif, "s.tif", LimitSettings(pixels=64 * 64))
    with pytest.raises(SceneError, match=r"s.tif \(64 x 64 px\): at most 4095 pixels"):
        check_header(tif, "s.tif", LimitSettings(pixels=64 * 64 - 1))
    with open(tif, "ab") as file:
        file.truncate(1 << 21)
    with pytest.raises(SceneError, match="2 MiB; at most 1"):
        check_header(tif, "s.tif", LimitSettings(upload_mib=1))


def test_the_ratio_is_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    path.write_bytes(geotiff(np.zeros((9000, 9000), np.uint8), compress="deflate", tiled=True))
    with pytest.raises(SceneError, match=r"unpacks to \d+ times its size; at most 200"):
        check_header(path, "s.tif", LimitSettings())
    check_header(path, "s.tif", LimitSettings(decompression_ratio=2000))


def test_an_overview_is_held_to_the_same_bounds_as_the_scene(tmp_path: Path) -> None:
    path, data = tmp_path / "s.tif", bytearray(good_files()["cog"])
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    (overview,) = struct.unpack_from("<I", data, first + 2 + 12 * entries)
    tags = range(overview + 2, overview + 2 + 12 * struct.unpack_from("<H", data, overview)[0], 12)
    compression = next(at for at in tags if struct.unpack_from("<H", data, at)[0] == 259)
    path.write_bytes(data)
    assert len(read_header(path, "s.tif")) > 1
    struct.pack_into("<H", data, compression + 8, 34925)
    path.write_bytes(data)
    with pytest.raises(SceneError, match="compression 34925 is not taken"):
        check_header(path, "s.tif", LimitSettings())


def test_damage_that_no_sample_meets_is_found_in_a_scene_that_is_small_enough_to_read(tif: Path) -> None:
    from fusar_edge.sar.scene import open_scene

    layout: dict[str, Any] = {"compress": "zstd", "tiled": True, "blockxsize": 64, "blockysize": 64}
    tif.write_bytes(small_scene(side=1600, **layout))
    with open_scene(tif) as scene:  # the middle of the gap between two samples
        offset, size = (
            int(scene._dataset.get_tag_item(f"BLOCK_{what}_2_2", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    data = bytearray(tif.read_bytes())
    data[offset : offset + size] = bytes(size)
    tif.write_bytes(data)
    open_scene(tif).close()
    prober = Prober()
    with pytest.raises(SceneError, match="cut or damaged"):
        prober.facts(tif, name="s.tif")
    prober.close()


@pytest.mark.parametrize("make", ["symlink", "folder", "fifo"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, tif: Path, make: str) -> None:
    path = tmp_path / "x.tif"
    {"symlink": lambda: path.symlink_to(tif), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}[make]()
    with pytest.raises(SceneError, match="no regular file"):
        check_header(path, "x.tif", LimitSettings())


def test_the_child_says_what_the_file_holds(tif: Path) -> None:
    facts = check(tif, name="s.tif", limits=LimitSettings(), prober=(prober := Prober()))
    prober.close()
    assert (facts.width, facts.height, facts.kind, facts.located) == (64, 64, "power", True)


def test_a_crash_of_the_reader_is_the_files_fault_and_the_next_file_is_read(tif: Path) -> None:
    crash = "import os, signal, sys; sys.stdin.readline(); os.kill(os.getpid(), signal.SIGSEGV)"
    prober = Scripted(crash)
    with pytest.raises(SceneError, match=r"bad.tif: reading it ended its reader \(SIGSEGV\)"):
        prober.facts(tif, name="bad.tif")
    assert prober.facts(tif, name="s.tif").width == 64
    prober.close()


def test_a_reading_that_never_ends_is_given_up(tif: Path) -> None:
    prober = Scripted("import sys, threading; sys.stdin.readline(); threading.Event().wait()", timeout_s=0.2)
    with pytest.raises(SceneError, match="takes longer than 0 s"):
        prober.facts(tif, name="slow.tif")
    prober.close()


def test_a_child_that_ended_of_idleness_is_replaced(tif: Path) -> None:
    prober = Scripted("pass")
    assert prober.facts(tif, name="s.tif").width == 64
    prober.close()


def test_a_child_that_was_killed_between_files_is_replaced(tif: Path) -> None:
    prober = Prober()
    prober.facts(tif, name="s.tif")
    child = prober._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert prober.facts(tif, name="s.tif").width == 64
    prober.close()


def test_the_child_can_write_nothing_knows_no_secret_and_has_bounded_memory(
    tif: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    prober = Prober()
    prober.facts(tif, name="s.tif")
    assert prober._child is not None
    process = Path(f"/proc/{prober._child.pid}")
    limits = (process / "limits").read_text()
    environment = (process / "environ").read_text()
    prober.close()
    rows = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()[1:]}
    assert rows["Max file size"] == "0"
    assert 1 << 30 < int(rows["Max address space"]) < 3 << 30
    assert "secret" not in environment
    assert not process.exists()


def test_a_message_of_the_child_names_the_file_and_not_its_folder(tif: Path) -> None:
    tif.write_bytes(geotiff(np.ones((64, 64), np.uint16)))
    prober = Prober()
    with pytest.raises(SceneError) as refused:
        prober.facts(tif, name="mine.tif")
    prober.close()
    assert "mine.tif holds uint16" in str(refused.value)
    assert "secret-folder" not in str(refused.value)
    assert "s.part" not in str(refused.value)

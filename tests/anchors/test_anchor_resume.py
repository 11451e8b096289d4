"""A build that is stopped: what was finished stays, what was not never looks complete."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from alphaearth_files import random_codes, write_raster

from fusar_edge.anchors.building import build
from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.building.pieces import Piece
from fusar_edge.anchors.building.unfinished import Shard
from fusar_edge.anchors.layout import SHARD_M
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import read_manifest

WEST, NORTH, SPACING = 327680, 4915200, 640  # on multiples of a shard's side
SIDE_PX = SHARD_M // 10


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six small rasters, each in a shard of its own."""
    folder = tmp_path_factory.mktemp("tiles")
    return [
        write_raster(folder / f"{i}.tif", random_codes(64, 64, seed=i), west=WEST + i * SHARD_M, north=NORTH)
        for i in range(6)
    ]


@pytest.fixture(scope="module")
def whole(tiles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the table that is built without a stop."""
    out = tmp_path_factory.mktemp("whole") / "t"
    return build_table(tiles, out, years=[2024], spacing_m=SPACING).files


def stop_after(pieces: int, monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    real, done = build.write_piece, []

    def write(piece: Piece) -> tuple[str, list[Shard]]:
        if len(done) == pieces:
            raise problem
        done.append(piece.name)
        return real(piece)

    monkeypatch.setattr(build, "write_piece", write)


@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt(), AnchorError("tile 3 is damaged"), OSError(errno.ENOSPC, "disk")]
)
def test_a_stopped_build_leaves_no_table_and_goes_on_to_the_same_bytes(
    tiles: list[Path], whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch, problem)
        with pytest.raises(AnchorError if isinstance(problem, OSError) else type(problem)):
            build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == [".t.building"]
    steps: list[tuple[int, int, str]] = []
    manifest = build_table(
        tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, progress=lambda *at: steps.append(at)
    )
    assert next(step for step in steps if step[2] == "building") == (3, 6, "building")
    assert manifest.files == whole
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    verify_table(tmp_path / "t")


def test_a_killed_process_goes_on_to_the_same_bytes(tiles: list[Path], whole: dict[str, str], tmp_path: Path) -> None:
    slow = (
        "import sys, time, fusar_edge.anchors.building.build as b\n"
        "real = b.write_piece\n"
        "def write(piece):\n"
        "    time.sleep(0.15)\n"
        "    return real(piece)\n"
        "b.write_piece = write\n"
        f"b.build_table(sys.argv[2:], sys.argv[1], years=[2024], spacing_m={SPACING}, jobs=1)\n"
    )
    command = [sys.executable, "-c", slow, str(tmp_path / "t"), *map(str, tiles)]
    journal = tmp_path / ".t.building" / "done.jsonl"
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        for _ in range(600):
            if journal.is_file() and journal.read_text().count("\n") >= 2:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "t").exists()
    finished = journal.read_text().count("\n")
    assert 2 <= finished < 6
    assert build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING).files == whole


def test_shards_that_changed_or_were_half_written_are_made_again(
    tiles: list[Path], whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(4, patch, OSError(errno.ENOSPC, "disk"))
        with pytest.raises(AnchorError, match=r"cannot be written \(.*disk\); make room"):
            build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1)
    table, journal = tmp_path / ".t.building" / "table", tmp_path / ".t.building" / "done.jsonl"
    first, second, third, _ = [json.loads(line)[1][0][0] for line in journal.read_text().splitlines()]
    (table / first).write_bytes((table / first).read_bytes()[:-7])
    (table / second).unlink()
    (table / third).with_name("0.1234.partial").write_bytes(b"half")
    with open(journal, "a") as file:
        file.write('["utm16n/2024/99')  # the line during which the power went
    assert build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING).files == whole
    verify_table(tmp_path / "t")


def test_remains_of_another_build_are_kept_until_force(
    tiles: list[Path], whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(2, patch, OSError(errno.ENOSPC, "disk"))
        with pytest.raises(AnchorError, match=r"cannot be written \(.*disk\); make room"):
            build_table(tiles, tmp_path / "t", years=[2024], spacing_m=320, jobs=1)
    for options in ({"spacing_m": SPACING}, {"spacing_m": 320, "sources": tiles[:5]}):
        with pytest.raises(AnchorError, match=r"unfinished build with other .*--force to begin anew"):
            build_table(**{"sources": tiles, "out": tmp_path / "t", "years": [2024]} | options)
        assert (tmp_path / ".t.building" / "done.jsonl").read_text().count("\n") == 2
    assert build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, force=True).files == whole


def test_a_source_that_changed_between_two_runs_is_another_build(
    tiles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [Path(shutil.copy(tile, tmp_path)) for tile in tiles]
    with monkeypatch.context() as patch:
        stop_after(2, patch, OSError(errno.ENOSPC, "disk"))
        with pytest.raises(AnchorError, match=r"cannot be written \(.*disk\); make room"):
            build_table(copies, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1)
    write_raster(copies[0], random_codes(64, 64, seed=99), west=WEST, north=NORTH)
    with pytest.raises(AnchorError, match="unfinished build with other sources"):
        build_table(copies, tmp_path / "t", years=[2024], spacing_m=SPACING)


def test_two_builds_of_one_table_do_not_mix(tiles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[BaseException] = []
    real = build.write_piece

    def write(piece: Piece) -> tuple[str, list[Shard]]:
        if not inner:
            with pytest.raises(AnchorError, match="is being built by another process") as caught:
                build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1)
            inner.append(caught.value)
        return real(piece)

    monkeypatch.setattr(build, "write_piece", write)
    build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1)
    assert len(inner) == 1
    verify_table(tmp_path / "t")


def test_the_table_that_is_there_stays_whole_until_a_forced_build_is_finished(
    tiles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_table(tiles[:2], tmp_path / "t", years=[2024], spacing_m=SPACING)
    before = read_manifest(tmp_path / "t").files
    with monkeypatch.context() as patch:
        stop_after(2, patch, OSError(errno.ENOSPC, "disk"))
        with pytest.raises(AnchorError, match=r"cannot be written \(.*disk\); make room"):
            build_table(tiles, tmp_path / "t", years=[2024], spacing_m=SPACING, jobs=1, force=True)
    assert read_manifest(tmp_path / "t").files == before
    verify_table(tmp_path / "t")


def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk: the write itself fails half-way, as it does there."""
    codes = random_codes(256, 256)
    tile = write_raster(tmp_path / "t.tif", codes, west=WEST, north=NORTH)
    build_it = (
        "import sys; from fusar_edge.anchors.building.build import build_table\n"
        "build_table([sys.argv[1]], sys.argv[2], years=[2024], spacing_m=10, jobs=1)\n"
    )

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [sys.executable, "-c", build_it, str(tile), str(tmp_path / "out")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AnchorError" in done.stderr
    assert "cannot be written" in done.stderr
    assert "make room and give the same command again" in done.stderr
    assert not (tmp_path / "out").exists()
    build_table([tile], tmp_path / "out", years=[2024], spacing_m=10)
    np.testing.assert_array_equal(np.asarray(AnchorTable.open(tmp_path / "out").zones[0].array[0]), codes)
    assert sorted(os.listdir(tmp_path)) == ["out", "t.tif"]

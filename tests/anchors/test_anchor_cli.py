from __future__ import annotations

import json
from pathlib import Path

import pytest
from alphaearth_files import random_codes, write_raster
from typer.testing import CliRunner

from fusar_edge.anchors.cli import app
from fusar_edge.anchors.codes import CREDIT
from fusar_edge.errors import AnchorError, OutputExistsError


def run(*words: object) -> dict:
    """The last line of stdout, which must be JSON."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "t.tif", random_codes(16, 16), west=358400, north=4906560)


def test_build_info_and_verify_end_with_a_line_of_json(tile: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    built = run("build", "--source", tile, "--year", 2024, "--spacing", 40, "--out", out)
    assert (built["spacing_m"], built["years"], built["credit"]) == (40, [2024], CREDIT)
    shown = run("info", out)
    assert shown["zones"] == built["zones"]
    assert list(shown["inputs"]) == ["t.tif"]
    assert run("verify", out) == {"table": str(out), "ok": True, "files": 14, "shards": 1, "valid_cells": 16}


def test_errors_reach_the_caller_as_they_are(tile: Path, tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match="give --year"):
        run("build", "--source", tile, "--out", tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_plan_needs_no_file_and_says_what_it_rests_on(tmp_path: Path) -> None:
    planned = run("plan", "--bounds", -89.0, 44.0, -88.0, 45.0, "--year", 2024, "--spacing", 320)
    assert (planned["exact"], planned["sources"]["from"]) == (True, "estimate")
    assert planned["bytes_raw"] == 64 * planned["cells"]
    size = run("plan", "--km2", 10_000, "--year", 2024, "--spacing", 80, "--form", "baked", "--rank", 32)
    assert (size["cells"], size["bytes_raw"]) == (1_562_500, 50_000_000)
    for words, reason in (
        (["--year", 2024], "no area"),
        (["--km2", 5, "--bounds", 1, 2, 3, 4], "--km2 stands alone"),
        (["--bounds", 1, 2, 3, 4, "--mirror", "x"], "give --index too"),
        (["--bounds", 1, 2, 3, 4, "--area", "x"], "give one of them"),
    ):
        with pytest.raises(AnchorError, match=reason):
            run("plan", *words)


def test_the_index_gives_the_tiles_of_an_area_from_a_mirror(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from alphaearth_files import write_index

    codes = random_codes(16, 16)
    (tmp_path / "mirror" / "2023" / "16N").mkdir(parents=True)
    write_raster(tmp_path / "mirror" / "2023" / "16N" / "x.tiff", codes, west=358400, north=4906560, bottom_up=True)
    prefix = "s3://us-west-2.opendata.source.coop/tge-labs/aef/v1/annual"
    place = dict(
        zip(("wgs84_west", "wgs84_south", "wgs84_east", "wgs84_north"), (-88.8, 44.2, -88.7, 44.4), strict=True)
    )
    metres = dict(
        zip(("utm_west", "utm_south", "utm_east", "utm_north"), (299040, 4833280, 380960, 4915200), strict=True)
    )
    tile = {"crs": "EPSG:32616", "utm_zone": "16N"} | place | {name: float(value) for name, value in metres.items()}
    rows = [{"path": f"{prefix}/{year}/16N/x.tiff", "year": year, **tile} for year in (2023, 2024)]
    write_index(tmp_path / "aef_index.parquet", [*rows, {"path": f"{prefix}/2023/17N/y.tiff", "year": 2023}])
    common = ["--index", tmp_path / "aef_index.parquet", "--mirror", tmp_path / "mirror", "--year", 2023]
    box = ["--bounds", -88.78, 44.29, -88.76, 44.31]
    built = run("build", *common, *box, "--spacing", 10, "--out", tmp_path / "t")
    assert built["years"] == [2023]
    assert built["zones"]["utm16n"]["valid_cells"] == {"2023": 256}
    assert run("plan", *common, *box)["sources"]["files"] == 1
    with pytest.raises(AnchorError, match="would take the whole Earth"):
        run("build", *common, "--out", tmp_path / "u")


def test_preview_writes_a_picture_and_force_replaces_it(tile: Path, tmp_path: Path) -> None:
    from PIL import Image

    run("build", "--source", tile, "--year", 2024, "--spacing", 10, "--out", tmp_path / "t")
    shown = run("preview", tmp_path / "t", "--out", tmp_path / "p.png", "--width", 64)
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (shown["width"], shown["height"])
        assert CREDIT in image.info["Copyright"]
    with pytest.raises(OutputExistsError):
        run("preview", tmp_path / "t", "--out", tmp_path / "p.png")
    run("preview", tmp_path / "t", "--out", tmp_path / "p.png", "--width", 32, "--force")


@pytest.mark.parametrize("verb", ["plan", "build", "info", "verify", "preview"])
def test_the_help_of_each_verb_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert f"fusar-edge anchors {verb}" in result.stdout

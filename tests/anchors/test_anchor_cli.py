from __future__ import annotations

import json
from pathlib import Path

import pytest
from alphaearth_files import random_codes, write_raster
from typer.testing import CliRunner

from fusar_edge.anchors.cli import app
from fusar_edge.anchors.codes import CREDIT
from fusar_edge.errors import AnchorError


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


@pytest.mark.parametrize("verb", ["build", "info", "verify"])
def test_the_help_of_each_verb_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert f"fusar-edge anchors {verb}" in result.stdout

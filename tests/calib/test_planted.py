"""Outliers as large models have them: plain ranges fail, SmoothQuant holds. docs/log.md has a trained model's table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import tiny_graphs

from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.run import calibrate
from fusar_edge.calib.smoothquant.planted import plant
from fusar_edge.calib.smoothquant.smooth import smooth
from fusar_edge.data.triplets import read_triplets
from fusar_edge.errors import GateError, RecipeError
from fusar_edge.manifest import read_manifest, write_manifest
from fusar_edge.specs import RangeSpec, SmoothSpec

SMOOTH = SmoothSpec(linears=("*",), rows=256)
SMOOTH_TOML = '[smooth]\nlinears = ["*"]\nrows = 256\n'


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 graphs of a model with outliers."""
    model = tiny_graphs.random_model()
    plant(model)
    return tiny_graphs.write_fp32(model, tmp_path_factory.mktemp("planted") / "fp32")


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after SmoothQuant."""
    model = tiny_graphs.random_model()
    plant(model)
    graphs = open_graphs(tiny_graphs.fp32_folder())
    smooth(model, graphs, read_triplets(tiny_graphs.tiles()), SMOOTH, RangeSpec())
    folder = tiny_graphs.write_fp32(model, tmp_path_factory.mktemp("smoothed") / "fp32")
    manifest = read_manifest(folder)
    manifest.settings["smooth"] = msgspec.to_builtins(SMOOTH)
    write_manifest(folder, manifest)
    return folder


def recipe(folder: Path, method: str, smooth: str = "") -> str:
    path = folder / "r.toml"
    text = tiny_graphs.RECIPE.replace('method = "percentile"', f'method = "{method}"')
    path.write_text(text.replace("[keep]", f"{smooth}[keep]"))
    return str(path)


@pytest.mark.parametrize("method", ["max", "percentile"])
def test_plain_ranges_fail_the_gate(planted: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(GateError, match=r"INT8 visual tokens have cosine 0\.[0-9]"):
        calibrate(recipe(tmp_path, method), planted, [tiny_graphs.tiles()], tmp_path / "int8")


def test_smoothquant_holds(smoothed: Path, tmp_path: Path) -> None:
    recipe_name = recipe(tmp_path, "percentile", SMOOTH_TOML)
    figures = calibrate(recipe_name, smoothed, [tiny_graphs.tiles()], tmp_path / "int8").figures["int8_vs_fp32"]
    plain = read_manifest(tiny_graphs.int8_folder()).figures["int8_vs_fp32"]
    assert figures["vision_cosine"] > plain["vision_cosine"] - 0.003  # as without outliers
    assert figures["logits_kl"] < 2 * plain["logits_kl"]


def test_a_recipe_that_smooths_needs_graphs_that_were(planted: Path, smoothed: Path, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, "percentile", SMOOTH_TOML)
    with pytest.raises(RecipeError, match=r"was exported without SmoothQuant, .*--smooth quick --data"):
        calibrate(wanted, planted, [tiny_graphs.tiles()], tmp_path / "int8")
    other = recipe(tmp_path, "percentile", SMOOTH_TOML.replace("256", "128"))
    with pytest.raises(RecipeError, match="was smoothed by another recipe"):
        calibrate(other, smoothed, [tiny_graphs.tiles()], tmp_path / "int8")

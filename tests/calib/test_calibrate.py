"""`calibrate` on fusar-tiny with random weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs

from fusar_edge.calib.compare import cosine, norm_ratio
from fusar_edge.calib.graphs import LISTING
from fusar_edge.calib.measured import NO_ANCHORS
from fusar_edge.calib.qdq import linears
from fusar_edge.calib.run import calibrate
from fusar_edge.errors import GateError, InputError, OutputExistsError, RecipeError
from fusar_edge.manifest import read_manifest, sha256_file, verify_files
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.specs import CalibRecipe


def recipe_file(tmp_path: Path, text: str = tiny_graphs.RECIPE) -> str:
    (tmp_path / "r.toml").write_text(text)
    return str(tmp_path / "r.toml")


def test_int8_graphs_are_close_to_fp32_on_tiles_that_gave_no_range() -> None:
    figures = read_manifest(tiny_graphs.int8_folder()).figures["int8_vs_fp32"]
    assert figures["vision_cosine"] > 0.99
    assert abs(figures["vision_norm_ratio"] - 1) < 0.02
    assert figures["logits_cosine"] > 0.98
    assert figures["images"] == 1


def test_every_quantised_linear_runs_on_an_int8_kernel() -> None:
    graphs = read_manifest(tiny_graphs.int8_folder()).figures["graphs"]
    assert {name: (g["int8"], g["fused_on_cpu"]) for name, g in graphs.items()} == {
        "vision.onnx": (34, 34),
        "decoder.onnx": (43, 43),
    }
    assert graphs["vision.onnx"]["kept"] == {"vision.patch_embed": "8-bit pixels"}


def test_the_folder_is_a_third_of_fp32s_and_whole() -> None:
    folder = tiny_graphs.int8_folder()
    manifest = read_manifest(folder)
    assert manifest.stage == "calibrate"
    assert manifest.settings["precision"] == "int8"
    assert set(manifest.files) == {"vision.onnx", "decoder.onnx", "tokenizer.json", LISTING}
    verify_files(folder, manifest)
    for name, figures in manifest.figures["graphs"].items():
        assert (folder / name).stat().st_size == figures["bytes_int8"] < 0.4 * figures["bytes_fp32"]


def test_the_manifest_names_every_calibration_tile_by_its_hash() -> None:
    inputs = read_manifest(tiny_graphs.int8_folder()).inputs
    data = tiny_graphs.tiles()
    listed = {name.removeprefix("tile/"): value for name, value in inputs.items() if name.startswith("tile/")}
    assert sum(name.endswith(".png") for name in listed) == 5  # four for the ranges, one held out
    assert all(sha256_file(data.parent.parent / name) == value for name, value in listed.items())
    assert inputs["vision.onnx"] == sha256_file(tiny_graphs.fp32_folder() / "vision.onnx")


def test_the_manifest_says_what_is_not_in_int8_and_why_and_how_much_is() -> None:
    figures = read_manifest(tiny_graphs.int8_folder()).figures
    assert figures["not_int8"]["vision.patch_embed"] == "8-bit pixels"
    assert "decoder.layers.0.self_attn/MatMul" in figures["not_int8"]
    assert figures["int8_macs"]["tile"]["weights"] > 0.99
    assert 0.88 < figures["int8_macs"]["tile"]["all"] < 0.92
    for stored in figures["stored"].values():
        assert 1.0 < stored["bytes_each"] < 1.1


def test_no_operator_outside_the_one_onnx_set_is_written() -> None:
    for name in ("vision.onnx", "decoder.onnx"):
        model = onnx.load(tiny_graphs.int8_folder() / name)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        assert {node.domain for node in model.graph.node} == {""}


def test_below_the_gate_nothing_is_written(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, tiny_graphs.RECIPE.replace("vision_cosine = 0.99", "vision_cosine = 1.0"))
    with pytest.raises(GateError, match="Nothing was written"):
        calibrate(recipe, tiny_graphs.fp32_folder(), [tiny_graphs.tiles()], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_without_anchors_the_layers_that_only_anchors_reach_stay_in_fp32(tmp_path: Path) -> None:
    for file in tiny_graphs.tiles().parent.glob("*.png"):
        shutil.copy(file, tmp_path)
    rows = [json.loads(line) for line in tiny_graphs.tiles().read_text().splitlines()]
    data = tmp_path / "plain.jsonl"
    data.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "aef"}) for row in rows[:3]))
    ticks: list[tuple[int, int, str]] = []
    recipe = recipe_file(tmp_path)
    manifest = calibrate(
        recipe,
        tiny_graphs.fp32_folder(),
        [data],
        tmp_path / "out",
        progress=lambda *at: ticks.append(at),
    )
    kept = manifest.figures["graphs"]["vision.onnx"]["kept"]
    assert {name for name, reason in kept.items() if reason == NO_ANCHORS} == {"tlm.film_mlp.0", "tlm.film_mlp.2"}
    assert ticks == [(done, 3, "choosing tiles") for done in (1, 2, 3)] + [(done, 4, "ranges") for done in range(1, 5)]


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        calibrate(recipe_file(tmp_path), tmp_path / "nothing", [tmp_path / "nothing.jsonl"], tmp_path / "out")


def test_a_folder_that_is_int8_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"made by stage 'calibrate'; give a folder made by: export"):
        calibrate(recipe_file(tmp_path), tiny_graphs.int8_folder(), [tiny_graphs.tiles()], tmp_path / "out")


def test_a_folder_without_its_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.fp32_folder(), tmp_path / "graphs")
    (tmp_path / "graphs" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        calibrate(recipe_file(tmp_path), tmp_path / "graphs", [tiny_graphs.tiles()], tmp_path / "out")


def test_an_unknown_recipe_key_is_named(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "entropy = true\n" + tiny_graphs.RECIPE)
    with pytest.raises(RecipeError, match="entropy"):
        calibrate(recipe, tiny_graphs.fp32_folder(), [tiny_graphs.tiles()], tmp_path / "out")


@pytest.mark.parametrize("name", recipe_names("calib"))
def test_a_shipped_recipe_loads_and_its_patterns_fit_layers_of_the_tiny_model(name: str) -> None:
    recipe, _ = load_recipe("calib", name, CalibRecipe)
    layers = [
        n.name for g in ("vision", "decoder") for n in linears(onnx.load(tiny_graphs.fp32_folder() / f"{g}.onnx"))
    ]
    for pattern, reason in recipe.keep.items():
        assert any(re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), layer) for layer in layers), pattern
        assert len(reason) > 10


def test_cosine_and_norm_ratio_are_those_of_flat_vectors() -> None:
    a, b = np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])
    assert cosine(a, b) == pytest.approx(24 / 25)
    assert norm_ratio(2 * a, b) == pytest.approx(2)
    assert cosine(a, 0 * b) == 0

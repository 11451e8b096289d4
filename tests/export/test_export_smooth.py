"""`export --smooth`: the graphs say the same, and tell what was folded and on which tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_graphs
from small_table import smooth_codes, write_table

from fusar_edge.calib.run import calibrate
from fusar_edge.calib.tiles.listing import read_listing
from fusar_edge.errors import InputError, RecipeError
from fusar_edge.export.baking.bake import bake_table
from fusar_edge.export.run import export_model
from fusar_edge.manifest import Manifest, folder_hashes, read_manifest, write_manifest
from fusar_edge.model.checkpoint import save_model, tokenizer_path
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe

SMOOTH = """
[smooth]
linears = ["vision.blocks.*.mlp.down_proj", "decoder.layers.*.self_attn.q_proj", "decoder.lm_head"]
rows = 128
[outliers]
linears = ["tlm.film_mlp.2", "vision.merger.mlp.2"]
ratio = 2.0
[keep]
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a recipe that smooths."""
    folder = tmp_path_factory.mktemp("smooth")
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    save_model(tiny_graphs.random_model(), tokenizer_path(recipe, "fusar-tiny"), folder / "checkpoint")
    write_manifest(folder / "checkpoint", Manifest(stage="stage2", recipe=text))
    (folder / "calib.toml").write_text(tiny_graphs.RECIPE.replace("[keep]", SMOOTH))
    return folder


def exported(work: Path, out: Path, **options: object) -> Manifest:
    given = {"smooth": str(work / "calib.toml"), "data": [tiny_graphs.tiles()]} | options
    return read_manifest(export_model("fusar-tiny", work / "checkpoint", out, **given))  # type: ignore[arg-type]


def test_a_smoothed_export_says_what_the_checkpoint_said_and_calibrates(work: Path, tmp_path: Path) -> None:
    ticks: list[tuple[int, int, str]] = []
    manifest = exported(work, tmp_path / "onnx", bar=lambda *at: ticks.append(at))
    assert manifest.files == folder_hashes(tmp_path / "onnx")
    assert {row["part"] for row in read_listing(tmp_path / "onnx" / "smoothing.jsonl")} == {"ranges", "held_out"}
    equality = manifest.figures["folded_vs_unfolded"]
    assert set(equality) == {"vision.visual_tokens", "decoder.logits"}
    for figures in equality.values():
        assert figures["cosine"] > 0.999999
    seams = manifest.figures["smooth"]["seams"]
    assert len(seams) == 6 + 6 + 1
    assert all(seam["error_after"] <= seam["error_before"] for seam in seams.values())
    assert manifest.settings["smooth"]["rows"] == 128
    assert manifest.inputs["smooth/tiles/tiles.jsonl"]
    assert {what for *_, what in ticks} == {"choosing tiles", "smoothing"}
    int8 = calibrate(str(work / "calib.toml"), tmp_path / "onnx", [tiny_graphs.tiles()], tmp_path / "int8")
    assert "smoothing.jsonl" not in int8.files  # the same tiles as calibration.jsonl
    assert int8.figures["graphs"]["vision.onnx"]["outliers"]


def test_a_graph_for_baked_tables_is_smoothed_and_calibrated_too(work: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "codes", {"utm16n": {2020: smooth_codes(96, 96)}})
    bake_table(tmp_path / "codes", work / "checkpoint", tmp_path / "baked", rank=8)
    manifest = exported(work, tmp_path / "onnx", anchors=tmp_path / "baked")
    assert manifest.settings["anchors"]["form"] == "baked"
    assert manifest.settings["smooth"]
    recipe = tiny_graphs.RECIPE.replace("[keep]", SMOOTH)  # names TLM's MLP, which is not there
    (tmp_path / "calib.toml").write_text(recipe)
    calibrate(str(tmp_path / "calib.toml"), tmp_path / "onnx", [tiny_graphs.tiles()], tmp_path / "int8")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"smooth": None}, InputError, "--data is for --smooth RECIPE"),
        ({"data": ()}, InputError, "chooses factors on real activations: give --data MANIFEST"),
        ({"smooth": "w8a8-percentile"}, RecipeError, r"that recipe has no \[smooth\]"),
    ],
)
def test_one_without_the_other_is_refused(
    work: Path, tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        exported(work, tmp_path / "onnx", **options)
    assert not (tmp_path / "onnx").exists()

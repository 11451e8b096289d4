"""An adapter beside weights that are written layer by layer is that of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapter_files as files
import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper

from fusar_edge.export.adapters import read_folds
from fusar_edge.export.lean.run import export_lean
from fusar_edge.export.lean.skeleton import skeletons
from fusar_edge.export.run import export_model
from fusar_edge.manifest import read_manifest, verify_files
from fusar_edge.model.adapted import branch_of
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.adapters import data_name, read_record, read_tensors
from fusar_edge.runtime.bundle import DECODER
from fusar_edge.specs import ModelRecipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def constants(folder: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / DECODER).graph.initializer}


def nodes(folder: Path) -> dict[str, Any]:
    return {n.name: list(n.output) for n in onnx.load(folder / DECODER).graph.node if n.op_type != "Constant"}


@pytest.fixture(scope="module")
def lean_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lean") / "fp32"
    recipe, text = load_recipe("export", str(files.recipe_file()), ModelRecipe)
    weights = open_weights(files.first(), recipe)
    return export_lean(weights, recipe, text, out, branch=branch_of("ships", weights))


def test_a_skeleton_declares_the_branches(tmp_path: Path) -> None:
    weights = open_weights(files.first(), load_recipe("export", str(files.recipe_file()), ModelRecipe)[0])
    found = skeletons(weights.config, tmp_path, rank=20)[DECODER]
    declared = {t.name: tuple(t.dims) for t in found.graph.initializer}
    for name, placed in read_record(files.fp32("first", "ships"), "ships").tensors.items():
        assert declared[name] == placed.shape
    assert {n.name for n in found.graph.node} >= set(nodes(files.fp32("first", "ships")))


def test_float_graphs_and_adapter_are_those_of_the_whole_model(lean_fp32: Path) -> None:
    whole = files.fp32("first", "ships")
    assert (lean_fp32 / data_name("ships")).read_bytes() == (whole / data_name("ships")).read_bytes()
    assert read_record(lean_fp32, "ships") == read_record(whole, "ships")
    found, wanted = constants(lean_fp32), constants(whole)
    found.pop("decoder.lm_head.weight")  # tied
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert nodes(lean_fp32).keys() == nodes(whole).keys()


def test_the_unmerged_graph_is_proven_against_the_merged_model(lean_fp32: Path) -> None:
    """Hugging Face's modules have the LoRA merged in a layer-by-layer export."""
    manifest = read_manifest(lean_fp32)
    verify_files(lean_fp32, manifest)
    assert manifest.settings["adapters"] == {"active": "ships", "exported": "ships"}
    figures = manifest.figures["onnxruntime_vs_hugging_face"]
    assert figures["decoder.logits"]["cosine"] > 1 - 1e-6
    assert figures["decoder.next_ids"] == {"agreement": 1.0}


def test_int8_with_folds_is_that_of_the_whole_model(tmp_path: Path) -> None:
    out, recipe = tmp_path / "int8", str(files.calib_file(True))
    given = {"int8": recipe, "data": [tiny_graphs.tiles()], "adapter": "ships"}
    export_model(str(files.recipe_file()), files.first(), out, **given)
    whole = files.int8("first", "ships", True)
    manifest = read_manifest(out)
    verify_files(out, manifest)
    tied = lambda names: {name.replace("embed_tokens.weight_axis", "lm_head.weight_axis") for name in names}  # noqa: E731
    assert tied(nodes(out)) == tied(nodes(whole))
    folds, wanted = read_folds(out), read_folds(whole)
    assert folds.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(folds[key], value, rtol=1e-4, err_msg=key)
    theirs = read_tensors(whole, "ships")
    for name, value in read_tensors(out, "ships").items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-6, err_msg=name)
    codes = [constants(folder) for folder in (out, whole)]
    for name, value in codes[1].items():
        if name.endswith("_int8") and name in codes[0]:
            assert np.abs(codes[0][name].astype(int) - value).max() <= 1
    outside = {e.value for t in onnx.load(out / DECODER, load_external_data=False).graph.initializer
               for e in t.external_data if e.key == "location"}  # fmt: skip
    assert outside == {f"{DECODER}.data", data_name("ships")}
    bundle = files.built(out)
    from fusar_edge.export.adding import add_adapter

    copy = files.bundle(out, tmp_path / "bundle")
    add_adapter(copy, "again", files.first())
    assert (copy / data_name("again")).read_bytes() == (bundle / data_name("ships")).read_bytes()

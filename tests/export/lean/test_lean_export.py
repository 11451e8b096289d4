"""`export --int8`, layer by layer, against `export --smooth` and `calibrate`, which hold the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper

from fusar_edge.calib.run import calibrate
from fusar_edge.errors import GateError, InputError
from fusar_edge.export.lean.data_file import DataFile
from fusar_edge.export.lean.run import export_lean
from fusar_edge.export.run import export_model
from fusar_edge.manifest import Manifest, folder_hashes, read_manifest, write_manifest
from fusar_edge.model.checkpoint import save_model, tokenizer_path
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import DECODER, VISION
from fusar_edge.specs import ModelRecipe

SMOOTH = """
[smooth]
linears = ["vision.blocks.*.attn.qkv", "vision.blocks.*.mlp.down_proj", "decoder.layers.*.self_attn.q_proj",
           "decoder.layers.*.self_attn.o_proj", "decoder.lm_head"]
rows = 128
alphas = [0.6]          # one: which of several is best is a draw of rows
[outliers]
linears = ["tlm.film_mlp.2", "vision.merger.mlp.2", "*.mlp.down_proj"]
ratio = 2.0
[keep]
"decoder.layers.3.mlp.up_proj" = "a layer in float among the others"
"""


def saved_checkpoint(folder: Path) -> Path:
    """fusar-tiny with random weights, as `train` leaves it."""
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    save_model(tiny_graphs.random_model(), tokenizer_path(recipe, "fusar-tiny"), folder / "checkpoint")
    write_manifest(folder / "checkpoint", Manifest(stage="stage2", recipe=text))
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint, calib.toml, whole (INT8 by two verbs), lean (INT8 by one)."""
    folder = tmp_path_factory.mktemp("lean")
    saved_checkpoint(folder)
    # Largest values: `calibrate` sees an image with anchors twice, which moves a percentile.
    recipe_text = tiny_graphs.RECIPE.replace("[keep]", SMOOTH).replace('"percentile"\npercentile = 99.99', '"max"')
    (folder / "calib.toml").write_text(recipe_text)
    name, data = str(folder / "calib.toml"), [tiny_graphs.tiles()]
    export_model("fusar-tiny", folder / "checkpoint", folder / "fp32", smooth=name, data=data)
    calibrate(name, folder / "fp32", data, folder / "whole")
    export_model("fusar-tiny", folder / "checkpoint", folder / "lean", int8=name, data=data)
    return folder


def constants(folder: Path, name: str) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / name).graph.initializer}


@pytest.mark.parametrize("name", [VISION, DECODER])
def test_int8_graphs_made_layer_by_layer_are_those_of_the_whole_model(work: Path, name: str) -> None:
    a, b = onnx.load(work / "lean" / name), onnx.load(work / "whole" / name)
    nodes = [{n.name: n for n in m.graph.node if n.op_type != "Constant"} for m in (a, b)]
    assert nodes[0].keys() == nodes[1].keys()
    found, wanted = constants(work / "lean", name), constants(work / "whole", name)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        if key.endswith("_int8"):  # a factor of SmoothQuant that differs in the last bit may turn a code
            off = np.abs(found[key].astype(int) - value)
            assert off.max() <= 1
            assert (off > 0).mean() < 1e-3
        else:
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-7, err_msg=key)


def test_the_manifest_says_what_calibrate_would_say(work: Path) -> None:
    lean, whole = (read_manifest(work / name) for name in ("lean", "whole"))
    assert lean.stage == whole.stage == "calibrate"
    assert lean.files == folder_hashes(work / "lean")
    assert lean.settings == whole.settings | {"streamed": True}
    assert lean.recipe == whole.recipe
    assert lean.figures["not_int8"] == whole.figures["not_int8"]
    assert lean.figures["int8_macs"] == whole.figures["int8_macs"]
    for name in (VISION, DECODER):
        mine, theirs = lean.figures["graphs"][name], whole.figures["graphs"][name]
        assert mine["kept"] == theirs["kept"]
        assert mine["outliers"] == theirs["outliers"]
        assert mine["ranges"].keys() == theirs["ranges"].keys()
        assert mine["half"] == theirs["half"]
    alphas = [{k: v["alpha"] for k, v in m.figures["export"]["smooth"]["seams"].items()} for m in (lean, whole)]
    assert alphas[0] == alphas[1]
    assert {k: v for k, v in lean.inputs.items() if k.startswith(("data/", "tile/"))} == {
        k: v for k, v in whole.inputs.items() if k.startswith(("data/", "tile/"))
    }


def test_int8_is_compared_with_float_as_calibrate_compares_it(work: Path) -> None:
    lean, whole = (read_manifest(work / name).figures["int8_vs_fp32"] for name in ("lean", "whole"))
    assert lean.keys() == whole.keys()
    for name in ("images", "tokens"):
        assert lean[name] == whole[name]
    for name in ("vision_cosine", "vision_cosine_least", "vision_norm_ratio", "logits_cosine", "logits_norm_ratio"):
        assert lean[name] == pytest.approx(whole[name], abs=2e-3)
    assert lean["logits_kl"] == pytest.approx(whole["logits_kl"], rel=0.3)


def test_float_graphs_made_layer_by_layer_are_those_of_the_whole_model(work: Path, tmp_path: Path) -> None:
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    export_lean(open_weights(work / "checkpoint", recipe), recipe, text, tmp_path / "lean")
    export_model("fusar-tiny", work / "checkpoint", tmp_path / "whole")
    lean, whole = (read_manifest(tmp_path / name) for name in ("lean", "whole"))
    assert lean.stage == whole.stage == "export"
    assert lean.settings == whole.settings
    equality = lean.figures["onnxruntime_vs_hugging_face"]
    assert equality.keys() == {"vision.visual_tokens", "vision.modulated_tokens", "decoder.logits", "decoder.next_ids"}
    assert equality["decoder.next_ids"] == {"agreement": 1.0}
    for name in (VISION, DECODER):
        found, wanted = constants(tmp_path / "lean", name), constants(tmp_path / "whole", name)
        tied = found.pop("decoder.lm_head.weight", None)
        if name == DECODER:
            assert tied is not None
            assert np.array_equal(tied, found["decoder.embed_tokens.weight"])
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value)
    sizes = [sum(p.stat().st_size for p in (tmp_path / name).glob("decoder.onnx*")) for name in ("lean", "whole")]
    assert sizes[0] < 1.02 * sizes[1]  # the tied head is stored once


def test_int8_that_is_too_far_off_is_told_before_the_decoder_is_begun(work: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(tiny_graphs.RECIPE.replace("vision_cosine = 0.99", "vision_cosine = 1.0"))
    with pytest.raises(GateError, match=r"the vision graph: INT8 visual tokens have cosine 0\.\d+ .* asks for 1\.0"):
        export_model("fusar-tiny", work / "checkpoint", tmp_path / "out", int8=str(recipe), data=[tiny_graphs.tiles()])
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"int8": "w8a8-smoothquant"}, "--int8 w8a8-smoothquant takes ranges on real tiles: give --data"),
        ({"int8": "w8a8-smoothquant", "smooth": "w8a8-smoothquant", "data": [Path("m.jsonl")]}, "leave --smooth"),
    ],
)
def test_what_does_not_go_together_is_refused(work: Path, tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        export_model("fusar-tiny", work / "checkpoint", tmp_path / "out", **options)


def test_a_large_model_is_exported_layer_by_layer_and_not_smoothed_whole(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusar_edge.export.run.LARGEST_WHOLE", 1 << 20)
    with pytest.raises(InputError, match=r"exported layer by layer: give --int8 \S+calib.toml in place of --smooth"):
        export_model(
            "fusar-tiny",
            work / "checkpoint",
            tmp_path / "out",
            smooth=str(work / "calib.toml"),
            data=[tiny_graphs.tiles()],
        )
    manifest = read_manifest(export_model("fusar-tiny", work / "checkpoint", tmp_path / "out"))
    assert "onnxruntime_vs_hugging_face" in manifest.figures


def test_weights_that_are_not_the_checkpoints_leave_no_graphs(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is compared with Hugging Face's forward, which reads the checkpoint by itself."""
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    put = DataFile.put

    def wrong(data: DataFile, name: str, value: Any) -> Any:
        return put(data, name, value * 2 if name == "decoder.layers.2.mlp.up_proj.weight" else value)

    monkeypatch.setattr(DataFile, "put", wrong)
    with pytest.raises(GateError, match=r"decoder\.(logits|next_ids), the written graph in ONNX Runtime against"):
        export_lean(open_weights(work / "checkpoint", recipe), recipe, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()

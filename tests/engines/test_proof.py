"""INT8 bundles show that they keep what FP32 can do, or are not made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper
from test_build import WAIVER, spec_file

from fusar_edge.calib.audit import audit
from fusar_edge.calib.graphs import LISTING
from fusar_edge.calib.tiles.listing import read_listing
from fusar_edge.engines.build import build
from fusar_edge.errors import DataError, GateError, InputError
from fusar_edge.eval.run import evaluate
from fusar_edge.manifest import Manifest, folder_hashes, read_manifest, sha256_file, write_manifest


def prove(tmp_path: Path, graphs: Path | None = None, **options: object) -> Manifest:
    given = {"data": tiny_graphs.other_tiles(), "reference": tiny_graphs.fp32_folder()} | options
    return build(spec_file(tmp_path), graphs or tiny_graphs.int8_folder(), tmp_path / "bundle", **given)  # type: ignore[arg-type]


def resealed(folder: Path) -> Path:
    manifest = read_manifest(folder)
    manifest.files = folder_hashes(folder)
    write_manifest(folder, manifest)
    return folder


def changed_graphs(folder: Path, graph: str, tensor: str, factor: float) -> Path:
    """INT8 graphs in which one tensor is multiplied, sealed again: as if `calibrate` had a bug."""
    shutil.copytree(tiny_graphs.int8_folder(), folder)
    model = onnx.load(folder / graph)
    held = next(t for t in model.graph.initializer if t.name == tensor)
    held.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(held) * factor).astype(np.float32), tensor))
    onnx.save(model, folder / graph)
    return resealed(folder)


def test_a_bundle_carries_every_check_with_its_bound_and_interval(tmp_path: Path) -> None:
    gate = prove(tmp_path).figures["gate"]
    assert gate["holds"]
    assert gate["waiver"] is None
    assert gate["failed"] == []
    assert gate["images"] == 6
    checks = {check["name"]: check for check in gate["checks"]}
    stages = ("vision_cosine", "vision_norm", "logits_cosine", "logits_norm", "token_agreement", "logits_kl")
    assert set(checks) == {"graphs_as_written", *stages, "count.parsed", "count.accuracy"}
    assert checks["vision_cosine"]["bound"] == 0.99
    assert checks["count.parsed"]["value"] == 1
    assert checks["count.parsed"]["interval_95"] == [1, 1]
    assert "6 questions" in checks["count.accuracy"]["note"]
    manifest = read_manifest(tmp_path / "bundle")
    assert manifest.figures["gate"] == gate
    memory = manifest.figures["memory"]
    assert 20 < memory["started_mib"] < memory["peak_mib"] < 1000


@pytest.mark.parametrize(
    ("graph", "tensor"),
    [
        ("vision.onnx", "vision.blocks.2.mlp.down_proj.weight_axis1_scale"),
        ("vision.onnx", "vision.merger.mlp.2.weight_axis1_scale"),
        ("decoder.onnx", "decoder.layers.3.self_attn.v_proj.weight_axis1_scale"),
        ("vision.onnx", "vision.blocks.4.mlp/Mul_output_scale"),
    ],
)
def test_one_scale_times_one_and_a_half_leaves_no_bundle(tmp_path: Path, graph: str, tensor: str) -> None:
    graphs = changed_graphs(tmp_path / "graphs", graph, tensor, 1.5)
    said = rf"graphs_as_written 1, at most 0 is asked for \({graph}: tensor {tensor} is not what FP32"
    with pytest.raises(GateError, match=said):
        prove(tmp_path, graphs)
    assert not (tmp_path / "bundle").exists()


def test_one_channel_times_one_and_a_half_is_found_too(tmp_path: Path) -> None:
    factor = np.ones(256, np.float32)
    factor[17] = 1.5
    tensor = "decoder.layers.3.self_attn.o_proj.weight_axis1_scale"
    graphs = changed_graphs(tmp_path / "graphs", "decoder.onnx", tensor, factor)  # type: ignore[arg-type]
    with pytest.raises(GateError, match=r"tensor .*o_proj\.weight_axis1_scale is not what FP32"):
        prove(tmp_path, graphs)


def test_a_norm_that_is_not_that_of_fp32_is_found(tmp_path: Path) -> None:
    graphs = changed_graphs(tmp_path / "graphs", "vision.onnx", "vision.blocks.0.norm1.weight", 1.5)
    with pytest.raises(GateError, match=r"vision\.blocks\.0\.norm1\.weight is not what FP32"):
        prove(tmp_path, graphs)


def test_graphs_as_calibrate_wrote_them_have_nothing_wrong() -> None:
    figures = read_manifest(tiny_graphs.int8_folder()).figures["graphs"]
    for name in ("vision.onnx", "decoder.onnx"):
        found = audit(tiny_graphs.int8_folder() / name, tiny_graphs.fp32_folder() / name, figures[name])
        assert found == []


def test_a_node_or_a_quantisation_that_calibrate_did_not_write_is_found(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.int8_folder(), tmp_path / "graphs")
    path = tmp_path / "graphs" / "vision.onnx"
    model = onnx.load(path)
    quantise = next(n for n in model.graph.node if n.name == "vision.blocks.1.attn.qkv_quantise")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "another"))
    quantise.input[1] = "another"  # and its DequantizeLinear keeps the right scale
    onnx.save(model, path)
    with pytest.raises(GateError, match=r"node vision\.blocks\.1\.attn\.qkv_quantise is another one"):
        prove(tmp_path, resealed(tmp_path / "graphs"))


def test_a_graph_that_was_changed_after_calibration_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.int8_folder(), tmp_path / "graphs")
    with open(tmp_path / "graphs" / "vision.onnx", "ab") as file:
        file.write(b"\x72\x00")
    with pytest.raises(InputError, match=r"vision\.onnx was changed"):
        prove(tmp_path, tmp_path / "graphs", waive=WAIVER)


def test_graphs_without_the_list_of_their_tiles_are_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.int8_folder(), tmp_path / "graphs")
    (tmp_path / "graphs" / LISTING).unlink()
    with pytest.raises(InputError, match=r"has no calibration\.jsonl, the tiles that it was calibrated on"):
        prove(tmp_path, resealed(tmp_path / "graphs"))


def test_what_falls_behind_leaves_no_bundle_and_is_named(tmp_path: Path) -> None:
    graphs = with_gate(tmp_path / "graphs", "token_agreement = 1.0\nlogits_kl = 1e-9")
    with pytest.raises(GateError, match=r"INT8 falls behind FP32 in \d of 9 checks: .*logits_kl .*at most 1e-09"):
        prove(tmp_path, graphs)
    assert not (tmp_path / "bundle").exists()


def test_a_waiver_builds_it_and_stands_in_the_manifest_beside_what_fails(tmp_path: Path) -> None:
    graphs = with_gate(tmp_path / "graphs", "token_agreement = 0.1\nlogits_kl = 1e-9")
    gate = prove(tmp_path, graphs, waive="a field trial, see ticket 12").figures["gate"]
    assert not gate["holds"]
    assert gate["waiver"] == "a field trial, see ticket 12"
    assert [text.split()[0] for text in gate["failed"]] == ["logits_kl"]


def test_a_waiver_that_is_not_needed_is_not_recorded(tmp_path: Path) -> None:
    gate = prove(tmp_path, waive="just in case").figures["gate"]
    assert gate["holds"]
    assert gate["waiver"] is None


def with_gate(folder: Path, bounds: str) -> Path:
    """INT8 graphs whose recipe asks for more."""
    shutil.copytree(tiny_graphs.int8_folder(), folder)
    manifest = read_manifest(folder)
    manifest.recipe = manifest.recipe[: manifest.recipe.index("[gate]")] + f"[gate]\nvision_cosine = 0.99\n{bounds}"
    write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None, "reference": None}, r"are INT8, and a bundle of them shows .*--waive REASON"),
        ({"reference": None}, r"give --data MANIFEST .* and --reference, the FP32"),
        ({"waive": "  "}, "say it in words"),
    ],
)
def test_what_the_proof_needs_is_asked_for_before_anything_is_done(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prove(tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]


def test_fp32_graphs_need_no_proof_and_take_no_waiver(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are FP32, no gate is asked of them"):
        build(spec_file(tmp_path), tiny_graphs.fp32_folder(), tmp_path / "bundle", waive=WAIVER)


def test_the_tiles_of_the_calibration_set_are_no_proof(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiles\.jsonl"):
        prove(tmp_path, data=tiny_graphs.tiles())


def test_a_copy_of_one_calibration_tile_among_others_is_found(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in tiny_graphs.other_tiles().read_text().splitlines()]
    for row in rows:
        row["image"] = str(tiny_graphs.other_tiles().parent / row["image"])
        row.pop("aef", None)
    chosen = next(iter(read_listing(tiny_graphs.int8_folder() / LISTING)))["image"]
    shutil.copy(tiny_graphs.tiles().parents[1] / chosen, tmp_path / "renamed.png")
    rows.append(rows[0] | {"image": str(tmp_path / "renamed.png")})
    data = tmp_path / "val.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"renamed\.png"):
        prove(tmp_path, data=data)


def test_another_fp32_folder_than_int8_was_made_from_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.fp32_folder(), tmp_path / "other")
    with open(tmp_path / "other" / "vision.onnx", "ab") as file:
        file.write(b"\x72\x00")
    with pytest.raises(InputError, match=r"other/vision\.onnx is not what .* was made from"):
        prove(tmp_path, reference=tmp_path / "other")


# FP32 answered elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """What the FP32 bundle says of the held-out tiles."""
    build(spec_file(tmp_path), tiny_graphs.fp32_folder(), tmp_path / "fp32")
    evaluate(str(tmp_path / "fp32"), tiny_graphs.other_tiles(), answers=tmp_path / "answers.jsonl")
    return tmp_path / "answers.jsonl"


def test_answers_of_fp32_stand_for_the_fp32_graphs(tmp_path: Path, answers: Path) -> None:
    graphs = tmp_path / "graphs"
    shutil.copytree(tiny_graphs.int8_folder(), graphs)
    manifest = read_manifest(graphs)
    manifest.figures["int8_vs_fp32"]["token_agreement"] = 0.9  # of one image and two tokens there
    write_manifest(graphs, manifest)
    figures = prove(tmp_path, graphs, reference=answers).figures
    (tmp_path / "bundle").rename(tmp_path / "by-answers")
    whole = prove(tmp_path).figures
    assert figures["tasks"]["fp32"] == whole["tasks"]["fp32"]
    assert figures["fp32_answers_sha256"] == sha256_file(answers)
    checks, others = ({c["name"]: c for c in f["gate"]["checks"]} for f in (figures, whole))
    assert set(others) == set(checks)
    assert checks["graphs_as_written"]["holds"] is None
    assert "not audited" in checks["graphs_as_written"]["note"]
    assert checks["count.accuracy"] == others["count.accuracy"]
    calibrated = read_manifest(tiny_graphs.int8_folder()).figures["int8_vs_fp32"]
    assert checks["vision_cosine"]["value"] == round(calibrated["vision_cosine"], 6)
    assert checks["vision_cosine"]["note"] == "measured when the graphs were calibrated, in ONNX Runtime"


def test_answers_that_int8_falls_behind_leave_no_bundle(tmp_path: Path, answers: Path) -> None:
    of, *rows = [json.loads(line) for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps(row) + "\n" for row in (of, *(r | {"said": r["reference"]} for r in rows))))
    with pytest.raises(GateError, match=r"count\.accuracy"):
        prove(tmp_path, reference=answers)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda of, rows: [of, *rows[:-1]], "holds 5 answers, .* asks 6 questions"),
        (lambda of, rows: [of, rows[1], rows[0], *rows[2:]], ":2 answers another question than"),
        (lambda of, rows: [of, rows[0] | {"question": "How many cats?"}, *rows[1:]], ":2 answers another .*cats"),
        (lambda of, rows: [of, rows[0], {"said": "1"}, *rows[2:]], ":3: .*missing required field"),
        (lambda of, rows: rows, ":1 does not say whose answers these are"),
        (lambda of, rows: [of | {"data_sha256": "0" * 64}, *rows], "answers to another manifest than"),
        (lambda of, rows: [of | {"precision": "int8"}, *rows], "in int8, grammar on: the gate asks for those of FP32"),
        (lambda of, rows: [of | {"grammar": False}, *rows], "in fp32, grammar off: the gate asks"),
        (lambda of, rows: [of | {"inputs": {"vision.onnx": "0" * 64}}, *rows], "not made from .another vision.onnx"),
        (lambda of, rows: [of | {"inputs": {}}, *rows], "not made from .no input in common"),
    ],
)
def test_answers_to_other_questions_are_refused_by_line(tmp_path: Path, answers: Path, change: Any, said: str) -> None:
    of, *rows = [json.loads(line) for line in answers.read_text().splitlines()]
    rows = change(of, rows)
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said):
        prove(tmp_path, reference=answers)

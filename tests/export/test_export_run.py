"""`fusar-edge export`: what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fusar_edge.errors import CheckpointError, GateError, OutputExistsError
from fusar_edge.export import parity, run
from fusar_edge.export.parity import Gate
from fusar_edge.export.run import export_model
from fusar_edge.manifest import read_manifest, sha256_file, verify_files
from fusar_edge.specs import ExportSpec


def test_an_export_holds_graphs_tokenizer_figures_and_lineage(
    recipe_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    out = export_model(str(recipe_file), checkpoint, tmp_path / "out", progress=steps.append)
    assert sorted(p.name for p in out.iterdir()) == ["decoder.onnx", "manifest.json", "tokenizer.json", "vision.onnx"]
    manifest = read_manifest(out)
    verify_files(out, manifest)
    assert set(manifest.files) == {"decoder.onnx", "tokenizer.json", "vision.onnx"}
    assert manifest.stage == "export"
    assert manifest.recipe == recipe_file.read_text()
    assert manifest.inputs["checkpoint/model.safetensors"] == sha256_file(checkpoint / "model.safetensors")
    assert manifest.inputs["parent/data"] == "5" * 64
    for figures in manifest.figures.values():
        assert figures["decoder.next_ids"] == {"agreement": 1.0}
        for output in ("vision.visual_tokens", "decoder.logits"):
            assert figures[output]["cosine"] > 0.999999
            assert abs(figures[output]["norm_ratio"] - 1) < 1e-5
            assert 0 <= figures[output]["max_abs"] < 1e-3
    assert steps[0] == "reading the checkpoint"


def test_the_settings_are_those_that_a_bundle_asks_for(recipe_file: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = export_model(str(recipe_file), checkpoint, tmp_path / "out")
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings == {
        "name": "small", "image_size": 140, "cells": 5, "channels": 64, "layers": 2, "heads": 4, "kv_heads": 2,
        "head_dim": 16, "vocab_size": 128, "eos_ids": [120, 121], "image_token_id": 122, "vision_start_token_id": 124,
        "vision_end_token_id": 125, "anchor_nodes": 5, "coordinate_size": 504, "opset": 17,
        "anchors": {"form": "codes", "bands": 64},
    }  # fmt: skip


def test_a_parity_failure_leaves_no_output(
    recipe_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> parity.Run:
        def shifted(values: parity.Values) -> parity.Values:
            found = honest(values)
            return found | {"new": found["new"] * 1.002} if "new" in found else found

        honest = run_from_file(path)
        return shifted

    run_from_file = parity.run_from_file
    monkeypatch.setattr(parity, "run_from_file", broken)
    with pytest.raises(GateError, match=r"decoder\.new, ONNX Runtime against PyTorch: ratio of norms 1\.002.*0\.001"):
        export_model(str(recipe_file), checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(recipe_file: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(OutputExistsError, match="--force"):
        export_model(str(recipe_file), checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


@pytest.mark.parametrize(
    ("said", "instead", "key"),
    [
        ("image_size = 140", "image_size = 252", "image_size 140"),
        ("num_hidden_layers = 2", "num_hidden_layers = 3", r"text\.num_hidden_layers 2"),
        ("fullatt_block_indexes = [1]", "fullatt_block_indexes = [0]", r"vision\.fullatt_block_indexes \[1\]"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    recipe_file: Path, checkpoint: Path, tmp_path: Path, said: str, instead: str, key: str
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe_file.read_text().replace(said, instead))
    with pytest.raises(CheckpointError, match=key):
        export_model(str(other), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        export_model(str(recipe_file), tmp_path / "nowhere", tmp_path / "out")


def test_the_output_goes_to_the_shelf_unless_told_otherwise(
    recipe_file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "write_graphs", lambda *_: {})
    assert export_model(str(recipe_file), checkpoint) == Path("export/out/small")
    assert (tmp_path / "export/out/small/manifest.json").is_file()


def test_the_gate_keeps_the_worst_figures_and_stops_at_the_first_beyond_its_bound() -> None:
    gate = Gate(ExportSpec(), "a against b")
    x = np.linspace(1, 2, 100)
    gate.check("out", x, x * 1.0005)
    gate.check("out", x, x)
    assert gate.figures["out"]["norm_ratio"] == pytest.approx(1.0005)
    assert gate.figures["out"]["max_abs"] == pytest.approx(0.001)
    gate.check("zero", np.zeros(3), np.zeros(3))
    with pytest.raises(GateError, match=r"out, a against b: cosine -1\.0+ is below 0\.9999"):
        gate.check("out", x, -x)
    with pytest.raises(GateError, match="cosine nan"):
        gate.check("out", x, x * np.nan)
    with pytest.raises(GateError, match="cosine nan"):
        gate.check("out", x, np.zeros(100))


def test_another_token_is_a_failure_and_a_tie_is_not() -> None:
    gate = Gate(ExportSpec(), "a against b")
    logits = np.array([[0.0, 1.0, 1.00001], [5.0, 1.0, 2.0]])
    gate.check_tokens(logits, np.array([1, 0], np.int32))
    with pytest.raises(GateError, match=r"token agreement 0\.500 is below 1"):
        gate.check_tokens(logits, np.array([2, 2], np.int32))

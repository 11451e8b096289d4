"""The room on the disk is asked for before anything is written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_lean_export import saved_checkpoint

from fusar_edge.errors import InputError
from fusar_edge.export.lean import room
from fusar_edge.export.lean.run import export_lean
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe


def test_what_is_asked_for_holds_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SLACK", 0)
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    weights = open_weights(saved_checkpoint(tmp_path), recipe)
    export_lean(weights, recipe, text, tmp_path / "out")
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.onnx.data"))
    asked = room.needed_bytes(weights, 0)
    assert written < asked < 1.5 * written
    assert room.needed_bytes(weights, 8, ()) > room.needed_bytes(weights, 0, ())
    kept = room.needed_bytes(weights, 0, ("decoder.lm_head",)) - room.needed_bytes(weights, 0, ())
    assert kept == pytest.approx(2.9 * math.prod(weights.shape("lm_head.weight")), abs=1)


def test_a_disk_without_room_is_told_with_both_figures_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    weights = open_weights(saved_checkpoint(tmp_path), recipe)
    with pytest.raises(InputError, match=r"has 0\.0 GiB free, and the export needs 0\.\d GiB more: make room"):
        export_lean(weights, recipe, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.exporting").exists()

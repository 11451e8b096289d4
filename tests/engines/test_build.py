"""Bundles from the graphs of fusar-tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_graphs

from fusar_edge.engines.build import build
from fusar_edge.errors import BundleError, DeviceError, EdgeError, InputError, OutputExistsError
from fusar_edge.manifest import read_manifest, sha256_file
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.runtime import trt_api
from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.runtime.session import Session
from fusar_edge.specs import EngineSpec

SPEC = """
name = "test"
engine = "onnxruntime"
status = "untested"
memory_mib = 512
threads = 1
cache_tokens = 256
tile_px = 300
overlap_px = 10
"""

WAIVER = "random weights: nothing to keep"


def spec_file(tmp_path: Path, text: str = SPEC) -> str:
    (tmp_path / "spec.toml").write_text(text)
    return str(tmp_path / "spec.toml")


def test_a_bundle_of_int8_graphs_opens_and_answers(tmp_path: Path) -> None:
    build(spec_file(tmp_path), tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.settings.precision == "int8"
    assert (bundle.settings.context_tokens, bundle.settings.tile_px, bundle.settings.overlap_px) == (256, 300, 10)
    session = Session(bundle, threads=1)
    session.look(np.zeros((252, 252), np.float32))
    assert session.ask("count").question.startswith("How many ship targets")


def test_a_bundle_carries_where_it_came_from(tmp_path: Path) -> None:
    source = tiny_graphs.int8_folder()
    manifest = build(spec_file(tmp_path), source, tmp_path / "bundle", waive=WAIVER)
    assert manifest.inputs["manifest.json"] == sha256_file(source / "manifest.json")
    gate = manifest.figures["gate"]
    assert {name: value for name, value in manifest.figures.items() if name != "gate"} == read_manifest(source).figures
    assert (gate["holds"], gate["waiver"], gate["checks"]) == (False, WAIVER, [])
    assert manifest.recipe == SPEC


def test_a_bundle_carries_its_task_metrics_beside_those_of_fp32(tmp_path: Path) -> None:
    data = tiny_graphs.other_tiles()
    manifest = build(
        spec_file(tmp_path),
        tiny_graphs.int8_folder(),
        tmp_path / "bundle",
        data=data,
        reference=tiny_graphs.fp32_folder(),
        images=2,
        waive=WAIVER,
    )
    measured = manifest.figures["tasks"]
    assert measured["data_sha256"] == sha256_file(data)
    assert [measured[precision]["count"]["questions"] for precision in ("int8", "fp32")] == [2, 2]
    assert read_manifest(tmp_path / "bundle").figures["tasks"] == measured


def test_a_reference_without_data_is_refused(tmp_path: Path) -> None:
    source = tiny_graphs.int8_folder()
    with pytest.raises(InputError, match="--data"):
        build(spec_file(tmp_path), source, tmp_path / "bundle", reference=source)
    assert not (tmp_path / "bundle").exists()


def test_a_changed_graph_is_refused_by_name(tmp_path: Path) -> None:
    build(spec_file(tmp_path), tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)
    graph = tmp_path / "bundle" / "decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx was changed"):
        open_bundle(tmp_path / "bundle")


def test_fp32_graphs_make_a_bundle_too(tmp_path: Path) -> None:
    manifest = build(spec_file(tmp_path), tiny_graphs.fp32_folder(), tmp_path / "bundle")
    assert manifest.settings["precision"] == "fp32"


def test_a_tensorrt_spec_is_refused_without_a_driver_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_api, "driver_problem", lambda: "there is no driver")
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU: there is no driver\. Run this on the device"):
        build("jetson-agx-orin-64gb", tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_does_not_hold_one_image_is_refused(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, SPEC.replace("cache_tokens = 256", "cache_tokens = 81"))
    with pytest.raises(InputError, match=r"an image of .* alone is 81 tokens"):
        build(spec, tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)


def test_a_graph_that_does_not_open_leaves_no_bundle(tmp_path: Path) -> None:
    shutil.copytree(tiny_graphs.int8_folder(), tmp_path / "graphs")
    (tmp_path / "graphs" / "vision.onnx").write_bytes(b"not a graph")
    with pytest.raises(EdgeError, match=r"vision\.onnx"):
        build(spec_file(tmp_path), tmp_path / "graphs", tmp_path / "bundle", waive=WAIVER)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_exists_is_kept_without_force(tmp_path: Path) -> None:
    build(spec_file(tmp_path), tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)
    with pytest.raises(OutputExistsError):
        build(spec_file(tmp_path), tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER)
    build(spec_file(tmp_path), tiny_graphs.int8_folder(), tmp_path / "bundle", waive=WAIVER, force=True)


@pytest.mark.parametrize("name", recipe_names("engines"))
def test_a_shipped_spec_loads_under_its_own_name(name: str) -> None:
    assert load_recipe("engines", name, EngineSpec)[0].name == name

"""A baked table, the graphs made for it, and a bundle of them: fusar-tiny with random weights, from table to answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_graphs
import torch
from small_table import SPACING_M, smooth_codes, write_table

from fusar_edge.anchors.codes import valid_from_codes, vectors_from_codes
from fusar_edge.anchors.grid import grid_positions
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.calib.run import calibrate
from fusar_edge.data.triplets import read_triplets
from fusar_edge.engines.build import build
from fusar_edge.engines.compile_gate import vision_profiles
from fusar_edge.errors import AnchorError, BundleError, InputError
from fusar_edge.eval.run import evaluate
from fusar_edge.export.baking.bake import bake_table
from fusar_edge.export.baking.projector import read_projector
from fusar_edge.export.parity import run_from_file
from fusar_edge.export.run import export_model
from fusar_edge.manifest import Manifest, read_manifest, verify_files, write_manifest
from fusar_edge.model.checkpoint import new_model, save_model, tokenizer_path
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.runtime.interpreter import interpret
from fusar_edge.runtime.session import Session
from fusar_edge.specs import ModelRecipe

RANK = 20
SPEC = """
name = "test"
engine = "onnxruntime"
status = "built"
memory_mib = 1024
threads = 1
cache_tokens = 256
tile_px = 64
overlap_px = 0
"""


def random_tiny(seed: int) -> FusarForConditionalGeneration:
    recipe, _ = load_recipe("export", "fusar-tiny", ModelRecipe)
    model = new_model(recipe, tokenizer_path(recipe, "fusar-tiny")).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.tlm.film_mlp[0].weight.mul_(4)  # clearly nonlinear
        model.tlm.film_mlp[2].weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def model() -> FusarForConditionalGeneration:
    return random_tiny(1)


@pytest.fixture(scope="module")
def work(model: FusarForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoint, codes (a table), baked, onnx, int8, bundle."""
    folder = tmp_path_factory.mktemp("work")
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    save_model(model, tokenizer_path(recipe, "fusar-tiny"), folder / "checkpoint")
    write_manifest(folder / "checkpoint", Manifest(stage="stage2", recipe=text))
    write_table(folder / "codes", {"utm16n": {2020: smooth_codes(96, 96)}})
    bake_table(folder / "codes", folder / "checkpoint", folder / "baked", rank=RANK)
    export_model("fusar-tiny", folder / "checkpoint", folder / "onnx", anchors=folder / "baked")
    (folder / "calib.toml").write_text(tiny_graphs.RECIPE)
    calibrate(str(folder / "calib.toml"), folder / "onnx", [tiny_graphs.tiles()], folder / "int8")
    (folder / "spec.toml").write_text(SPEC)
    build(
        str(folder / "spec.toml"),
        folder / "int8",
        folder / "bundle",
        data=tiny_graphs.other_tiles(),
        reference=folder / "onnx",
        images=2,
        waive="random weights",
    )
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 x 64 pixels of 10 m inside the table."""
    import rasterio

    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    values = np.random.default_rng(3).integers(5, 60, (1, 64, 64)).astype(np.uint8)
    place = rasterio.Affine(10, 0, 30_010 * SPACING_M, 0, -10, 420_080 * SPACING_M)
    profile = {"count": 1, "height": 64, "width": 64, "dtype": "uint8", "crs": "EPSG:32616", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", transform=place, **profile) as file:
        file.write(values)
    return path


def test_the_baked_graph_takes_coefficients_and_holds_the_basis_instead_of_the_mlp(work: Path) -> None:
    graph = onnx.load(work / "onnx" / "vision.onnx").graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert shapes["anchors"] == ["batch", "anchors", RANK]
    weights = {w.name: tuple(w.dims) for w in graph.initializer}
    assert weights["tlm.basis.weight"] == (RANK, 512)
    assert not [name for name in weights if "film_mlp" in name]
    assert 64 * 1024 not in [int(np.prod(shape)) for shape in weights.values()]
    assert {n.op_type for n in graph.node if n.name == "tlm.basis"} == {"MatMul"}


def test_an_export_for_a_baked_table_says_so_and_carries_its_error(work: Path) -> None:
    manifest, table = read_manifest(work / "onnx"), read_manifest(work / "baked")
    verify_files(work / "onnx", manifest)
    basis = table.settings["basis_sha256"]
    assert manifest.settings["anchors"] == {"form": "baked", "bands": RANK, "basis_sha256": basis}
    assert manifest.inputs["anchors/basis.npz"] == basis
    assert manifest.figures["baked_vs_exact_tlm"] == table.figures["baked"]
    assert manifest.figures["onnxruntime_vs_pytorch"]["vision.visual_tokens"]["cosine"] > 0.999999
    assert "projector.npz" in manifest.files


def test_tokens_of_the_baked_graph_are_those_of_the_exact_model_within_the_bound(
    work: Path, model: FusarForConditionalGeneration
) -> None:
    raw, low = (AnchorTable.open(work / name).zones[0].array[0, 20:60:9, 10:60:11] for name in ("codes", "baked"))
    mask = valid_from_codes(np.asarray(raw)).reshape(1, 25).astype(np.float32)
    vectors = vectors_from_codes(np.asarray(raw)).reshape(1, 25, 64)
    coefficients = np.asarray(low).reshape(1, 25, RANK) / np.float32(127) * mask[..., None]
    pixels = np.random.default_rng(0).random((1, 1, 252, 252), np.float32)
    given = {"pixels": pixels, "anchor_positions": grid_positions(5)[None].copy()}
    run = run_from_file(work / "onnx" / "vision.onnx")

    def tokens(coefficients: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found: np.ndarray = run(given | {"anchors": coefficients, "anchor_mask": mask})["visual_tokens"]
        return found

    with torch.no_grad():
        inputs = (pixels, vectors, given["anchor_positions"], mask)
        exact = model.visual_tokens(*map(torch.from_numpy, inputs)).numpy()
        plain = model.visual_tokens(torch.from_numpy(pixels)).numpy()
    change = np.linalg.norm(exact - plain)
    assert 0 < mask.sum() < 25
    assert change > 0.05 * np.linalg.norm(plain)
    assert np.linalg.norm(tokens(coefficients, mask) - exact) < 0.05 * change
    np.testing.assert_allclose(tokens(coefficients, 0 * mask), plain, atol=2e-5)
    everything = np.ones((1, 25), np.float32)
    assert np.abs(tokens(coefficients, everything) - exact).max() > 1e-3


def test_an_export_refuses_a_table_of_codes_and_one_of_another_tlm(work: Path, tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match="codes holds AlphaEarth codes: `fusar-edge anchors bake`"):
        export_model("fusar-tiny", work / "checkpoint", tmp_path / "out", anchors=work / "codes")
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    save_model(random_tiny(2), tokenizer_path(recipe, "fusar-tiny"), tmp_path / "other")
    write_manifest(tmp_path / "other", Manifest(stage="stage2", recipe=text))
    with pytest.raises(AnchorError, match=r"baked was baked from another TLM than that of .*other"):
        export_model("fusar-tiny", tmp_path / "other", tmp_path / "out", anchors=work / "baked")
    assert not (tmp_path / "out").exists()


def test_int8_takes_its_ranges_from_projected_vectors(work: Path) -> None:
    manifest = read_manifest(work / "int8")
    ranges = manifest.figures["graphs"]["vision.onnx"]["ranges"]
    assert 0 < ranges["tlm.basis"] <= 1
    assert manifest.figures["int8_vs_fp32"]["vision_cosine"] > 0.99
    assert manifest.settings["anchors"]["bands"] == RANK
    assert (work / "int8" / "projector.npz").read_bytes() == (work / "onnx" / "projector.npz").read_bytes()


def test_the_bundle_has_no_projector_and_its_tasks_are_measured(work: Path) -> None:
    bundle = open_bundle(work / "bundle")
    assert "projector.npz" not in bundle.manifest.files
    assert not (work / "bundle" / "projector.npz").exists()
    assert bundle.settings.anchors.bands == RANK
    assert bundle.manifest.figures["tasks"]["int8"]["count"]["questions"] == 2
    assert vision_profiles(bundle.settings)[0]["anchors"] == ((1, 1, RANK), (1, 81, RANK), (8, 1024, RANK))


def test_a_scene_is_interpreted_with_the_baked_table(work: Path, scene: Path) -> None:
    bundle, table = open_bundle(work / "bundle"), AnchorTable.open(work / "baked")
    session = Session(bundle, threads=1)
    with_table = interpret(bundle, [scene], ["count"], anchors=table, session=session).scenes[0].records
    assert [0 < r.anchors_used <= 81 for r in with_table] == [True]
    assert session._visual is not None
    seen = session._visual.copy()
    interpret(bundle, [scene], ["count"], session=session)
    assert np.abs(session._visual - seen).max() > 1e-3


def test_a_table_that_does_not_match_the_bundle_is_refused_with_the_command_that_helps(
    work: Path, scene: Path, tmp_path: Path
) -> None:
    bundle, codes = open_bundle(work / "bundle"), AnchorTable.open(work / "codes")
    with pytest.raises(InputError, match=r"codes holds AlphaEarth codes, .*bundle takes baked tables .* --like BAKED"):
        interpret(bundle, [scene], ["count"], anchors=codes)
    bake_table(work / "codes", work / "checkpoint", tmp_path / "other", rank=RANK + 1)
    with pytest.raises(InputError, match=r"coefficients of another basis.*--like BAKED.*--anchors .*other"):
        interpret(bundle, [scene], ["count"], anchors=AnchorTable.open(tmp_path / "other"))
    with pytest.raises(InputError, match=r"baked is a baked table, .*default takes AlphaEarth codes.*export"):
        interpret(open_bundle("default"), [scene], ["count"], anchors=AnchorTable.open(work / "baked"))


def test_a_table_baked_like_another_serves_the_same_bundle(work: Path, scene: Path, tmp_path: Path) -> None:
    bake_table(work / "codes", work / "checkpoint", tmp_path / "alike", like=work / "baked")
    bundle = open_bundle(work / "bundle")
    result = interpret(bundle, [scene], ["count"], anchors=AnchorTable.open(tmp_path / "alike"), threads=1)
    assert result.scenes[0].records[0].anchors_used > 0


def test_per_image_vectors_are_refused_by_a_baked_bundle_and_projected_beside_its_graphs(
    work: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"1\.npz: per-image vectors cannot be given to .*`fusar-edge build --data`"):
        evaluate(str(work / "bundle"), tiny_graphs.tiles(), threads=1)
    (tmp_path / "projector.npz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"projector\.npz cannot be read"):
        read_projector(tmp_path)
    assert any(triplet.aef for triplet in read_triplets(tiny_graphs.tiles())[:2])


def test_anchors_of_another_width_are_refused_by_a_session(work: Path) -> None:
    class Wide:
        mask = np.ones(1, bool)

        def vectors(self) -> np.ndarray:
            return np.zeros((1, 64), np.float32)

    session = Session(open_bundle(work / "bundle"), threads=1)
    with pytest.raises(InputError, match=r"anchors of 64 values were given; .*bundle takes 20 \(baked\)"):
        session.look(np.zeros((252, 252), np.float32), Wide(), np.zeros((1, 2), np.float32))

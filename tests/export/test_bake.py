"""`anchors bake`: what a baked table holds, how its error is measured, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import adapter_files as files
import numpy as np
import pytest
import torch
from small_model import random_model
from small_table import SPACING_M, smooth_codes, write_table
from typer.testing import CliRunner

from fusar_edge.anchors.codes import codes_from_vectors, valid_from_codes, vectors_from_codes
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.anchors.verify import verify_table
from fusar_edge.cli import app
from fusar_edge.errors import AnchorError, CheckpointError, GateError, InputError, OutputExistsError
from fusar_edge.export.baking import places
from fusar_edge.export.baking.bake import bake_table, open_baked
from fusar_edge.export.baking.basis import (
    Basis,
    fit_directions,
    projector_from,
    read_basis,
    tlm_sha256,
    token_weight,
)
from fusar_edge.export.baking.error import errors_by_rank, measured_error
from fusar_edge.export.baking.places import read_places
from fusar_edge.export.baking.projector import coefficients_from_codes
from fusar_edge.manifest import read_manifest, sha256_file, verify_files
from fusar_edge.model.checkpoint import save_model
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.tlm import BakedModulation
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe

Model = FusarForConditionalGeneration
ROWS, COLS, RANK = 90, 140, 24
YEARS = {2020: smooth_codes(ROWS, COLS, 1), 2022: smooth_codes(ROWS, COLS, 2, masked=0.6)}
EAST = {2022: smooth_codes(40, 30, 3)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "raw", {"utm16n": YEARS, "utm17n": EAST})


@pytest.fixture(scope="module")
def baked(table: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baked") / "baked"
    bake_table(table, checkpoint, out, rank=RANK)
    return out


def exact(model: Model, vectors: np.ndarray) -> np.ndarray:
    """The MLP in NumPy, float64."""
    first, second = model.tlm.film_mlp[0], model.tlm.film_mlp[2]
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in (first.weight, first.bias, second.weight, second.bias))
    hidden = vectors.astype(np.float64) @ w1.T + b1
    return (hidden / (1 + np.exp(-hidden))) @ w2.T + b2


def test_every_cell_of_every_year_and_zone_is_there_with_its_coefficients(
    table: Path, baked: Path, model: Model
) -> None:
    raw, low = AnchorTable.open(table), AnchorTable.open(baked)
    assert (low.bands, low.years, low.spacing_m) == (RANK, [2020, 2022], SPACING_M)
    basis = read_basis(baked / "basis.npz")
    for before, after in zip(raw.zones, low.zones, strict=True):
        assert (after.name, after.years, after.rows, after.cols) == (
            before.name,
            before.years,
            before.rows,
            before.cols,
        )
        assert (after.west, after.north) == (before.west, before.north)
        codes, coefficients = np.asarray(before.array[:]), np.asarray(after.array[:])
        valid = valid_from_codes(codes)
        np.testing.assert_array_equal((coefficients != -128).all(-1), valid)
        np.testing.assert_array_equal((coefficients != -128).any(-1), valid)
        f = exact(model, vectors_from_codes(codes[valid]))
        found = basis.mean + (coefficients[valid] * low.scale) @ basis.basis
        assert np.linalg.norm(f - found) < 0.05 * np.linalg.norm(f - basis.mean)


def test_a_baked_table_is_verified_and_looked_up_like_any_other(table: Path, baked: Path) -> None:
    import pyproj

    assert verify_table(baked)["valid_cells"] == verify_table(table)["valid_cells"]
    x, y = (30_000 + np.arange(COLS) + 0.5) * SPACING_M, np.full(COLS, (420_000 + ROWS - 0.5) * SPACING_M)
    lon, lat = pyproj.Transformer.from_crs(32616, 4326, always_xy=True).transform(x, y)
    anchors = AnchorTable.open(baked).lookup(lon, lat, 2020)
    np.testing.assert_array_equal(anchors.mask, valid_from_codes(YEARS[2020][0]))
    vectors = anchors.vectors()
    assert vectors.shape == (COLS, RANK)
    assert vectors.dtype == np.float32
    assert not vectors[~anchors.mask].any()
    assert 0.3 < np.abs(vectors).max() <= 1


def test_the_manifest_says_what_was_baked_from_what_and_how_well(
    table: Path, baked: Path, checkpoint: Path, model: Model
) -> None:
    manifest, source = read_manifest(baked), read_manifest(table)
    verify_files(baked, manifest)
    assert manifest.settings == source.settings | {
        "form": "baked",
        "bands": RANK,
        "tlm_sha256": tlm_sha256(model.tlm.film_mlp.state_dict()),
        "basis_sha256": sha256_file(baked / "basis.npz"),
    }
    assert manifest.inputs["table/manifest.json"] == sha256_file(table / "manifest.json")
    assert manifest.inputs["checkpoint/model.safetensors"] == sha256_file(checkpoint / "model.safetensors")
    assert manifest.inputs["source/tile.tif"] == "7" * 64
    figures = manifest.figures["baked"]
    assert {k: manifest.figures[k] for k in source.figures} == source.figures
    assert (figures["rank"], figures["bytes_per_anchor"], figures["bound"]) == (RANK, RANK, 0.05)
    assert figures["error"]["tokens"]["vs_constant"] < 0.05
    assert figures["visual_tokens"]["cosine"] > 0.999
    assert figures["held_out_cells"] > 500


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_tlm_of_an_official_checkpoint_is_baked_with_a_recipe(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legacy = files.adapter(tmp_path / "legacy", legacy=True)
    recipe = str(tmp_path / "legacy.toml")
    Path(recipe).write_text(files.recipe_file().read_text().replace("image_size = 140", "image_size = 504"))
    with pytest.raises(CheckpointError, match="give --recipe NAME"):
        bake_table(table, legacy, tmp_path / "out")
    with pytest.raises(CheckpointError, match="--sigma"):
        bake_table(table, legacy, tmp_path / "out", recipe=recipe)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    given = ["--checkpoint", "hub:owner/repository/legacy", "--recipe", recipe, "--sigma", "2", "--max-error", "0.5"]
    done = CliRunner().invoke(app, ["anchors", "bake", str(table), *given, "--out", str(tmp_path / "baked")])
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "baked")
    weights = open_weights(legacy, load_recipe("export", recipe, ModelRecipe)[0], sigma=2.0)
    assert manifest.settings["tlm_sha256"] == tlm_sha256(weights.tlm_state())
    assert weights.hashes().items() <= manifest.inputs.items()


def test_two_bakes_give_the_same_bytes(table: Path, baked: Path, checkpoint: Path, tmp_path: Path) -> None:
    bake_table(table, checkpoint, tmp_path / "again", rank=RANK)
    assert read_manifest(tmp_path / "again").files == read_manifest(baked).files


def test_the_reported_error_is_that_of_an_independent_computation(baked: Path, model: Model, table: Path) -> None:
    held = read_places(AnchorTable.open(table)).held_out
    basis, figures = read_basis(baked / "basis.npz"), read_manifest(baked).figures["baked"]
    f = exact(model, held)
    weighted = basis.basis * basis.weight
    coefficients = np.linalg.lstsq(weighted.T, ((f - basis.mean) * basis.weight).T, rcond=None)[0].T
    low = basis.mean + np.clip(np.rint(coefficients * 127), -127, 127) / 127 @ basis.basis
    half = len(basis.mean) // 2
    for name, part in (("gamma", slice(half)), ("beta", slice(half, None)), ("both", slice(None))):
        error, spread, size = (np.linalg.norm(x[:, part]) for x in (f - low, f - basis.mean, f))
        assert figures["error"][name]["vs_constant"] == pytest.approx(error / spread, rel=0.01)
        assert figures["error"][name]["vs_size"] == pytest.approx(error / size, rel=0.01)
    errors, spread = (np.linalg.norm(x * basis.weight, axis=1) for x in (f - low, f - basis.mean))
    rms = np.sqrt(np.mean(spread**2))
    assert figures["error"]["tokens"]["vs_constant"] == pytest.approx(np.sqrt(np.mean(errors**2)) / rms, rel=0.01)
    assert figures["error"]["worst"] == pytest.approx(errors.max() / rms, rel=0.02)


def test_a_constant_has_error_1_and_a_constant_tlm_none(model: Model) -> None:
    vectors = vectors_from_codes(EAST[2022][valid_from_codes(EAST[2022])])
    fit = fit_directions(model.tlm.film_mlp, vectors, token_weight(model), 4)
    nothing = Basis(fit.basis(1).mean, np.full_like(fit.basis(1).basis, 1e-12), fit.basis(1).weight)
    projector = projector_from(model.tlm.film_mlp, nothing)
    figures = measured_error(model.tlm.film_mlp, nothing, projector, vectors)
    assert figures["tokens"]["vs_constant"] == pytest.approx(1, abs=1e-3)
    assert figures["both"]["vs_constant"] == pytest.approx(1, abs=1e-3)
    identity = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128))
    torch.nn.init.zeros_(identity[2].weight)
    torch.nn.init.zeros_(identity[2].bias)
    basis = fit_directions(identity, vectors, token_weight(model), 2).basis(2)
    figures = measured_error(identity, basis, projector_from(identity, basis), vectors)
    assert figures["both"] == {"vs_constant": 0.0, "vs_size": 0.0}


def test_the_basis_is_the_best_one_in_the_weighted_norm(model: Model) -> None:
    vectors = vectors_from_codes(YEARS[2020][valid_from_codes(YEARS[2020])])
    weight = token_weight(model)
    fit = fit_directions(model.tlm.film_mlp, vectors, weight, RANK)
    f = exact(model, vectors)
    singular = np.linalg.svd((f - f.mean(0)) * weight, compute_uv=False)
    best = np.sqrt(np.maximum(1 - np.cumsum(singular**2) / (singular**2).sum(), 0))
    np.testing.assert_allclose(fit.mean.numpy(), f.mean(0), atol=1e-5)
    found = errors_by_rank(fit, model.tlm.film_mlp, vectors)
    assert (found[:8] >= best[:8] - 1e-4).all()
    np.testing.assert_allclose(found[:8], best[:8], atol=0.01)  # int8


def test_subspace_iteration_finds_what_the_whole_decomposition_finds(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = vectors_from_codes(EAST[2022][valid_from_codes(EAST[2022])])
    weight = token_weight(model)
    whole = errors_by_rank(fit_directions(model.tlm.film_mlp, vectors, weight, 8), model.tlm.film_mlp, vectors)
    monkeypatch.setattr("fusar_edge.export.baking.basis.WHOLE", 0)
    monkeypatch.setattr("fusar_edge.export.baking.basis.DIRECTIONS", 0)
    some = errors_by_rank(fit_directions(model.tlm.film_mlp, vectors, weight, 8), model.tlm.film_mlp, vectors)
    assert len(some) == 32
    np.testing.assert_allclose(some[:16], whole[:16], atol=1e-3)


def test_the_projector_is_the_projection_of_the_exact_output(baked: Path, model: Model) -> None:
    basis = read_basis(baked / "basis.npz")
    vectors = vectors_from_codes(EAST[2022][valid_from_codes(EAST[2022])])
    projector = projector_from(model.tlm.film_mlp, basis)
    weighted = basis.basis * basis.weight
    gram = weighted @ weighted.T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-3 * gram.max())
    wanted = ((exact(model, vectors) - basis.mean) * basis.weight) @ weighted.T / np.diag(gram)
    assert np.abs(projector.coefficients(vectors) - np.clip(wanted, -1, 1)).max() <= 0.51 / 127
    codes = projector.codes(100 * vectors)  # far beyond every range
    assert codes.min() == -127
    np.testing.assert_array_equal(projector.coefficients(vectors), coefficients_from_codes(projector.codes(vectors)))


def test_baked_modulation_is_tlm_on_the_low_rank_outputs(model: Model, baked: Path) -> None:
    rng = np.random.default_rng(0)
    basis = read_basis(baked / "basis.npz")
    half, nodes = len(basis.mean) // 2, 7
    tokens, positions = rng.normal(size=(2, 25, half)).astype(np.float32), rng.random((2, nodes, 2), np.float32)
    coefficients = rng.uniform(-1, 1, (2, nodes, RANK)).astype(np.float32)
    mask = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0]], np.float32)
    module = BakedModulation(model.tlm, torch.from_numpy(basis.mean), torch.from_numpy(basis.basis))
    found = module(*map(torch.from_numpy, (tokens, coefficients, positions, mask))).detach().numpy()
    axis = np.arange(10)
    resize = model.tlm.resize(torch.device("cpu")).numpy().astype(np.float64)
    for image in range(2):
        at = positions[image].astype(np.float64) * 9
        y, x = ((axis[:, None] - at[:, i]) ** 2 for i in (0, 1))  # (10, S)
        weights = np.exp(-(y[:, None] + x[None]) / (2 * model.tlm.sigma**2)).reshape(100, nodes)
        weights = weights / (weights.sum(1, keepdims=True) + 1e-6) * mask[image]
        weights = weights / (weights.sum(1, keepdims=True) + 1e-6)
        film = resize @ weights @ (basis.mean + coefficients[image] @ basis.basis)
        np.testing.assert_allclose(found[image], tokens[image] * (1 + film[:, :half]) + film[:, half:], atol=2e-4)
    with torch.no_grad():
        plain = module(*map(torch.from_numpy, (tokens, coefficients, positions, 0 * mask))).numpy()
    np.testing.assert_array_equal(plain, tokens)


def test_places_to_fit_on_and_to_measure_on_lie_in_different_blocks(tmp_path: Path) -> None:
    codes = np.full((200, 260, 64), -128, np.int8)
    block_row, block_col = np.indices((200, 260)) // 64
    codes[:] = np.minimum(127, 10 + block_row + 5 * block_col)[..., None]  # a code that says the block
    table = AnchorTable.open(write_table(tmp_path / "t", {"utm16n": {2020: codes, 2021: codes}}))
    found = read_places(table, 5000)
    assert found.block_cells == 64
    assert 4000 < len(found.fit) + len(found.held_out) <= 5000
    assert not set(found.fit[:, 0].tolist()) & set(found.held_out[:, 0].tolist())
    assert len(set(found.fit[:, 0].tolist())) > 10
    np.testing.assert_array_equal(read_places(table, 5000).fit, found.fit)


@pytest.mark.parametrize(("rows", "cols", "block"), [(97, 97, 32), (20, 20, 8), (5, 5, 2)])
def test_a_small_table_holds_out_smaller_blocks(tmp_path: Path, rows: int, cols: int, block: int) -> None:
    table = AnchorTable.open(write_table(tmp_path / "t", {"utm16n": {2020: smooth_codes(rows, cols, masked=0)}}))
    found = read_places(table)
    assert found.block_cells <= block
    assert len(found.fit) + len(found.held_out) == rows * cols
    assert 0.1 <= len(found.held_out) / (rows * cols) <= 0.4


def test_a_table_of_two_cells_cannot_be_measured(tmp_path: Path, checkpoint: Path) -> None:
    table = write_table(tmp_path / "t", {"utm16n": {2020: smooth_codes(1, 2, masked=0)}})
    with pytest.raises(AnchorError, match=r"holds 2 vectors: too few"):
        bake_table(table, checkpoint, tmp_path / "out", rank=1)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_above_the_bound_the_rank_that_would_do_is_named_and_nothing_is_written(
    table: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(GateError, match=r"2 coefficients leave an error of 0\..* a rank of \d+ reaches") as caught:
        bake_table(table, checkpoint, tmp_path / "out", rank=2)
    assert list(tmp_path.iterdir()) == []
    enough = int(str(caught.value).split("a rank of ")[1].split()[0])
    assert bake_table(table, checkpoint, tmp_path / "out", rank=enough).figures["baked"]["rank"] == enough
    with pytest.raises(GateError, match=f"a rank of {enough} reaches"):
        bake_table(table, checkpoint, tmp_path / "less", rank=enough - 1)
    with pytest.raises(GateError, match="no rank does, the best is"):
        bake_table(table, checkpoint, tmp_path / "never", rank=2, max_error=1e-6)


def test_one_basis_serves_another_table_and_is_measured_there(
    table: Path, baked: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = write_table(tmp_path / "other", {"utm33n": {2021: smooth_codes(40, 40, 8)}})
    manifest = bake_table(other, checkpoint, tmp_path / "alike", like=baked, max_error=0.2)
    assert manifest.settings["basis_sha256"] == read_manifest(baked).settings["basis_sha256"]
    figures = manifest.figures["baked"]
    assert (figures["rank"], figures["fit_cells"]) == (RANK, 0)
    assert figures["held_out_cells"] == manifest.figures["zones"]["utm33n"]["valid_cells"]["2021"]
    single = write_table(tmp_path / "single", {"utm33n": {2021: smooth_codes(1, 1, 8, masked=0)}})
    bake_table(single, checkpoint, tmp_path / "one", like=baked, max_error=0.9)
    far = np.random.default_rng(0).normal(size=(40, 40, 64))
    unlike = codes_from_vectors(far / np.linalg.norm(far, axis=-1, keepdims=True))
    strange = write_table(tmp_path / "strange", {"utm33n": {2021: unlike}})
    with pytest.raises(GateError, match="--like does not fit this table"):
        bake_table(strange, checkpoint, tmp_path / "out", like=baked)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_baked_is_refused(
    table: Path, baked: Path, checkpoint: Path, recipe: ModelRecipe, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (tmp_path / "tokenizer.json").write_text("{}")
    save_model(random_model(recipe, seed=5), tmp_path / "tokenizer.json", other)
    shutil.copy(checkpoint / "manifest.json", other)
    out = tmp_path / "out"
    with pytest.raises(AnchorError, match=r"baked is baked already: give the table of AlphaEarth codes"):
        bake_table(baked, checkpoint, out)
    with pytest.raises(AnchorError, match="holds AlphaEarth codes"):
        bake_table(table, checkpoint, out, like=table)
    with pytest.raises(InputError, match="baked from another TLM"):
        bake_table(table, other, out, like=baked)
    with pytest.raises(InputError, match="give one of them"):
        bake_table(table, checkpoint, out, like=baked, rank=3)
    with pytest.raises(InputError, match="gives 128 values"):
        bake_table(table, checkpoint, out, rank=129)
    with pytest.raises(InputError, match="give a share between 0 and 1"):
        bake_table(table, checkpoint, out, max_error=5)
    with pytest.raises(CheckpointError, match="nowhere"):
        bake_table(table, tmp_path / "nowhere", out)
    with pytest.raises(OutputExistsError):
        bake_table(table, checkpoint, other)
    assert not out.exists()


def test_a_damaged_shard_stops_the_bake_and_leaves_nothing(table: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(table, tmp_path / "copy")
    shard = tmp_path / "copy" / "utm16n/codes/c/1/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(AnchorError, match=r"utm16n/codes/c/1/0/0/0 is damaged"):
        bake_table(tmp_path / "copy", checkpoint, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_changed_basis_is_noticed(baked: Path, tmp_path: Path) -> None:
    shutil.copytree(baked, tmp_path / "copy")
    data = bytearray((tmp_path / "copy/basis.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "copy/basis.npz").write_bytes(data)
    with pytest.raises(AnchorError, match=r"basis\.npz was changed"):
        open_baked(tmp_path / "copy")


def test_a_large_table_is_sampled_from_a_part_of_its_shards(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SHARDS", 2)
    ticks: list[tuple[int, int]] = []
    read_places(AnchorTable.open(table), progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 2), (2, 2)]

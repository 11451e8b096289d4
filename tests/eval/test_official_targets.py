"""Official checkpoints without a manifest, asked with --recipe."""

from __future__ import annotations

import json
from pathlib import Path

import adapter_files as files
import numpy as np
import pytest
from official_files import recipe_on
from typer.testing import CliRunner

from fusar_edge.cli import app
from fusar_edge.data.simulator import write_dataset
from fusar_edge.errors import BundleError, CheckpointError, InputError, RecipeError
from fusar_edge.eval.run import evaluate, open_session
from fusar_edge.manifest import FILENAME, Manifest, read_manifest, sha256_file, write_manifest
from fusar_edge.model.checkpoint import load_checkpoint
from fusar_edge.model.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def recipe() -> str:
    return str(files.recipe_file())


def hashes_of(checkpoint: str | Path, sigma: float | None = None) -> dict[str, str]:
    return open_weights(checkpoint, recipe_on(files.ROOT / "base"), sigma=sigma).hashes()


@pytest.mark.parametrize("form", ["folder", "hub", "base"])
def test_every_official_form_is_a_session_with_a_recipe(
    recipe: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(files.ROOT))
    target = {"folder": str(files.first()), "hub": "hub:owner/repository/first", "base": "base"}[form]
    session = open_session(target, recipe=recipe)
    bundle, manifest = session.bundle, session.bundle.manifest
    assert (bundle.settings.name, bundle.settings.image_size, bundle.settings.precision) == ("small", 140, "fp32")
    assert manifest.stage == "official"
    assert manifest.recipe == Path(recipe).read_text()
    assert manifest.inputs == hashes_of("base" if form == "base" else files.first())
    assert manifest.inputs["base/model.safetensors"] == sha256_file(files.ROOT / "base" / "model.safetensors")
    assert ("adapter/adapter_model.safetensors" in manifest.inputs) == (form != "base")
    assert len(bundle.sha256) == 64
    session.look(np.zeros((140, 140), np.float32))
    assert session.ask("caption").generation.ids


def test_the_inputs_of_a_session_are_those_of_its_export(recipe: str) -> None:
    exported = read_manifest(files.fp32("first", "ships"))
    assert open_session(str(files.first()), recipe=recipe).bundle.manifest.inputs == exported.inputs


def test_two_checkpoints_have_two_identities(recipe: str) -> None:
    one, two, again = (
        open_session(str(target), recipe=recipe).bundle.sha256 for target in (files.first(), "base", files.first())
    )
    assert one == again != two


def test_a_folder_of_ours_says_its_recipe_and_carries_its_hashes(recipe: str, tmp_path: Path) -> None:
    own = files.adapter(tmp_path / "own", **files.FIRST)
    write_manifest(own, Manifest(stage="stage1", recipe=Path(recipe).read_text(), inputs={"parent": "7" * 64}))
    for given in (None, recipe):
        bundle = open_session(str(own), recipe=given).bundle
        assert (bundle.manifest.stage, bundle.sha256) == ("stage1", sha256_file(own / FILENAME))
        assert bundle.manifest.inputs == {"parent": "7" * 64} | hashes_of(own)


def legacy_of(folder: Path) -> tuple[str, str]:
    """A checkpoint without tlm_config.json, and its recipe."""
    adapter = files.adapter(folder / "legacy", legacy=True)
    recipe = folder / "legacy.toml"
    recipe.write_text(files.recipe_file().read_text().replace("image_size = 140", "image_size = 504"))
    return str(adapter), str(recipe)


def test_a_legacy_folder_takes_its_sigma(tmp_path: Path) -> None:
    legacy, recipe = legacy_of(tmp_path)
    with pytest.raises(CheckpointError, match="--sigma"):
        open_session(legacy, recipe=recipe)
    assert open_session(legacy, recipe=recipe, sigma=2.0).bundle.settings.image_size == 504


def test_what_needs_a_recipe_and_what_takes_none(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (str(files.first()), "hub:owner/repository/first", "base"):
        with pytest.raises(CheckpointError, match="give --recipe NAME"):
            open_session(target)
        with pytest.raises(CheckpointError, match="give --recipe NAME"):
            load_checkpoint(target)
    (tmp_path / "bundle").mkdir()
    write_manifest(tmp_path / "bundle", Manifest(stage="build"))
    for target in ("default", "bundle"):
        with pytest.raises(InputError, match=f"{target} is a bundle, --recipe is of a checkpoint"):
            open_session(target, recipe=recipe)
        with pytest.raises(InputError, match=f"{target} is a bundle, --sigma is of a checkpoint"):
            open_session(target, sigma=2.0)
    with pytest.raises(RecipeError, match="no recipe 'nothing'"):
        open_session("base", recipe="nothing")
    with pytest.raises(CheckpointError, match="nowhere is no folder"):
        open_session("nowhere", recipe=recipe)
    with pytest.raises(BundleError, match="nowhere is not a bundle"):
        open_session("nowhere")


def test_the_verb_takes_both_options(tmp_path: Path) -> None:
    legacy, recipe = legacy_of(tmp_path)
    write_dataset(tmp_path / "sim", 1, 3, size=504)
    data = tmp_path / "sim" / "triplets.jsonl"
    given = ["--recipe", recipe, "--sigma", "2", "--data", str(data), "--images", "1", "--task", "count"]
    done = CliRunner().invoke(app, ["eval", legacy, *given])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["model"], found["precision"]) == ("small", "fp32")
    again = evaluate(legacy, data, tasks=["count"], images=1, recipe=recipe, sigma=2.0)
    assert again["tasks"] == found["tasks"]

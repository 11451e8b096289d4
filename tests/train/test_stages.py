"""All three stages on a very small model: what is trained, what is frozen, what is saved, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_data import write_recipe, write_scenes

from fusar_edge.errors import CheckpointError, DataError, OutputExistsError, RecipeError
from fusar_edge.manifest import read_manifest, sha256_file
from fusar_edge.model.checkpoint import load_checkpoint
from fusar_edge.train.base import BaseStageData
from fusar_edge.train.run import train, weighted_manifest
from fusar_edge.train.sft import SftModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, stage 1 in both readings, stage 2 after each."""
    folder = tmp_path_factory.mktemp("trained")
    data = [str(write_scenes(folder))]
    for reading in ("official", "paper"):
        recipe = str(write_recipe(folder, reading))
        if reading == "official":
            train(recipe, "base", data, folder / "base", log=lambda _: None)
        train(recipe, "1", data, folder / f"stage1-{reading}", init=folder / "base", log=lambda _: None)
        out = folder / f"stage2-{reading}"
        train(recipe, "2", data, out, init=folder / f"stage1-{reading}", log=lambda _: None)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def changed(before: Path, after: Path) -> set[str]:
    a, b = weights(before), weights(after)
    return {name for name in a if not torch.allclose(a[name], b[name], atol=1e-6)}


def test_stage_1_after_the_paper_trains_tlm_alone(trained: Path) -> None:
    names = changed(trained / "base", trained / "stage1-paper")
    assert names
    assert all(name.startswith("tlm.") for name in names)


def test_stage_1_after_the_official_code_trains_tlm_and_a_lora(trained: Path) -> None:
    names = changed(trained / "base", trained / "stage1-official")
    assert any(name.startswith("tlm.") for name in names)
    assert any("language_model" in name and "q_proj" in name for name in names)
    assert not any("visual" in name or "embed" in name or "norm" in name for name in names)


@pytest.mark.parametrize("reading", ["paper", "official"])
def test_stage_2_freezes_tlm_and_trains_the_lora(trained: Path, reading: str) -> None:
    names = changed(trained / f"stage1-{reading}", trained / f"stage2-{reading}")
    assert names
    assert all("language_model" in name and "proj" in name for name in names)


def test_stage_2_goes_on_with_the_lora_of_stage_1(trained: Path) -> None:
    from safetensors.torch import load_file

    one = load_file(trained / "stage1-official" / "adapter" / "adapter_model.safetensors")
    two = load_file(trained / "stage2-official" / "adapter" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    # A at the start of stage 2 is stage 1's, not a new random one: a few small steps cannot have moved it far.
    for name in one:
        if "lora_A" in name:
            assert torch.allclose(one[name], two[name], atol=0.02)


def test_base_and_adapter_together_are_the_merged_model(trained: Path) -> None:
    from peft import PeftModel

    model = load_checkpoint(trained / "base")[0]
    adapter = trained / "stage2-official" / "adapter"
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    film = torch.load(adapter / "vec64_film.pt", weights_only=True)["film_mlp"]
    whole = weights(trained / "stage2-official")
    for name, value in whole.items():
        expected = film[name.removeprefix("tlm.film_mlp.")] if name.startswith("tlm.") else merged[name]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


def test_the_adapter_has_the_official_form(trained: Path) -> None:
    adapter = trained / "stage1-official" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 32, 0.05)
    film = torch.load(adapter / "vec64_film.pt", weights_only=True)
    assert list(film) == ["film_mlp"]
    assert list(film["film_mlp"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert json.loads((adapter / "tlm_config.json").read_text()) == {
        "format": "tlm_original_train_patch_resize_v1",
        "sigma": 2.0,
        "hidden_mult": 4,
        "image_size": 84,
        "vec_dim": 64,
    }


def test_a_checkpoint_names_its_parent_recipe_and_data(trained: Path) -> None:
    manifest = read_manifest(trained / "stage2-official")
    assert manifest.stage == "stage2"
    assert manifest.inputs["parent"] == sha256_file(trained / "stage1-official" / "manifest.json")
    assert manifest.inputs["data/sim/triplets.jsonl"] == sha256_file(trained / "sim" / "triplets.jsonl")
    assert manifest.recipe == (trained / "small-official.toml").read_text()
    assert not (trained / "stage2-official.training").exists()


def test_a_checkpoint_keeps_the_losses_of_its_training(trained: Path) -> None:
    for stage, log in (("base", "0-see.jsonl"), ("stage1-paper", "stage1.jsonl"), ("stage2-official", "stage2.jsonl")):
        found = sorted((trained / stage / "log").iterdir())
        assert found[0].name == log
        assert all("loss" in json.loads(path.read_text().splitlines()[0]) for path in found)


def test_a_run_killed_inside_a_phase_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, data = str(trained / "small-official.toml"), [str(trained / "sim" / "triplets.jsonl")]
    real = BaseStageData.__getitem__

    def killed(self: BaseStageData, index: int) -> dict[str, Any]:
        if self.phase.name == "tell" and index == 5:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(BaseStageData, "__getitem__", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, "base", data, tmp_path / "again", log=lambda _: None)
    assert not (tmp_path / "again").exists()
    assert list((tmp_path / "again.training" / "1-tell").glob("checkpoint-*"))
    monkeypatch.setattr(BaseStageData, "__getitem__", real)
    train(recipe, "base", data, tmp_path / "again", log=lambda _: None)
    assert changed(trained / "base", tmp_path / "again") == set()


@pytest.mark.parametrize(("stage", "init"), [("1", "base"), ("2", "stage1-official")])
def test_a_stage_that_was_killed_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any, init: str
) -> None:
    recipe, data = str(trained / "small-official.toml"), [str(trained / "sim" / "triplets.jsonl")]
    real, seen = SftModel.forward, [0]

    def killed(self: SftModel, **batch: Any) -> dict[str, torch.Tensor]:
        seen[0] += 1
        if seen[0] == 2:
            raise KeyboardInterrupt
        return real(self, **batch)

    monkeypatch.setattr(SftModel, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stage, data, tmp_path / "again", init=trained / init, log=lambda _: None)
    assert list((tmp_path / "again.training").glob("*/checkpoint-1"))
    monkeypatch.setattr(SftModel, "forward", real)
    train(recipe, stage, data, tmp_path / "again", init=trained / init, log=lambda _: None)
    assert changed(trained / f"stage{stage}-official", tmp_path / "again") == set()


@pytest.mark.parametrize("problem", [DataError, RecipeError])
def test_an_unfinished_run_survives_an_input_that_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: type[Exception]
) -> None:
    recipe, scenes = str(trained / "small-official.toml"), tmp_path / "sim"
    shutil.copytree(trained / "sim", scenes)
    data, real, seen = [str(scenes / "triplets.jsonl")], SftModel.forward, [0]

    def killed(self: SftModel, **batch: Any) -> dict[str, torch.Tensor]:
        seen[0] += 1
        if seen[0] == 2:
            raise KeyboardInterrupt
        return real(self, **batch)

    def go() -> None:
        train(recipe, "1", data, tmp_path / "again", init=trained / "base", log=lambda _: None)

    def refuse(_: Any) -> None:
        raise RecipeError("another strategy")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SftModel, "forward", killed)
        go()
    kept = sorted((tmp_path / "again.training").glob("stage1/checkpoint-1/*"))
    assert kept
    with monkeypatch.context() as patch, pytest.raises(problem):
        if problem is RecipeError:
            patch.setattr("fusar_edge.train.loop.check_strategy", refuse)
        else:
            scenes.rename(tmp_path / "unmounted")
            scenes.mkdir()
            shutil.copyfile(tmp_path / "unmounted" / "triplets.jsonl", data[0])
        go()
    assert sorted((tmp_path / "again.training").glob("stage1/checkpoint-1/*")) == kept
    if problem is DataError:
        shutil.rmtree(scenes)
        (tmp_path / "unmounted").rename(scenes)
    go()
    assert changed(trained / "stage1-official", tmp_path / "again") == set()


def test_what_was_trained_survives_an_error_of_the_run_that_began_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> bool:
        raise CheckpointError("the parent is gone")

    monkeypatch.setattr("fusar_edge.train.run.sharded", refuse)
    data = [str(trained / "sim" / "triplets.jsonl")]
    with pytest.raises(CheckpointError, match="is gone"):
        train(
            str(trained / "small-official.toml"), "1", data, tmp_path / "out", init=trained / "base", log=lambda _: None
        )
    assert (tmp_path / "out.training" / "stage1" / "done.json").is_file()


def test_an_unfinished_run_of_other_data_is_not_taken_up(trained: Path, tmp_path: Path) -> None:
    recipe, data = str(trained / "small-official.toml"), [str(trained / "sim" / "triplets.jsonl")]
    (tmp_path / "out.training").mkdir()
    with pytest.raises(OutputExistsError, match="unfinished run"):
        train(recipe, "base", data, tmp_path / "out", log=lambda _: None)


def test_stages_out_of_order_are_refused(trained: Path, tmp_path: Path) -> None:
    recipe, data = str(trained / "small-official.toml"), [str(trained / "sim" / "triplets.jsonl")]
    with pytest.raises(CheckpointError, match="stage 2 starts from"):
        train(recipe, "2", data, tmp_path / "out", init=trained / "base")
    with pytest.raises(CheckpointError, match="needs --init"):
        train(recipe, "1", data, tmp_path / "out")
    with pytest.raises(RecipeError, match="has no base stage"):
        train("fusar-gpt-7b", "base", data, tmp_path / "out")
    with pytest.raises(RecipeError, match="--scale"):
        train(recipe, "base", data, tmp_path / "out", scale=0)


def test_stage_1_without_anchors_is_refused(trained: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (trained / "sim" / "triplets.jsonl").read_text().splitlines()]
    bare = trained / "sim" / "bare.jsonl"
    bare.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "aef"}) + "\n" for row in rows))
    with pytest.raises(DataError, match="aef"):
        train(str(trained / "small-official.toml"), "1", [str(bare)], tmp_path / "out", init=trained / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_follows_the_manifest() -> None:
    assert weighted_manifest("a/m.jsonl@2.5") == (Path("a/m.jsonl"), 2.5)
    assert weighted_manifest("a@b/m.jsonl") == (Path("a@b/m.jsonl"), 1.0)
    with pytest.raises(DataError):
        weighted_manifest("m.jsonl@0")

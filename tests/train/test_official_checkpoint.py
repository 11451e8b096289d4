"""Official checkpoints as whole models: what `train` saves on a published base, and what it goes on from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import LANGUAGE, adapter_on, hugging_face, published, random_film, recipe_on, rewrite_json
from peft import PeftModel
from safetensors.torch import load_file
from small_data import RECIPE, write_scenes
from torch import nn

from fusar_edge.errors import CheckpointError
from fusar_edge.eval.run import open_session
from fusar_edge.manifest import read_manifest, sha256_file
from fusar_edge.model.checkpoint import load_checkpoint, model_from
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.weights import open_weights
from fusar_edge.recipes import shelf_folder
from fusar_edge.train.run import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TOKENIZER = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"
SIZE = 84
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ with the small tokenizer, sim/ with scenes, official.toml and paper.toml."""
    folder = tmp_path_factory.mktemp("official")
    published(folder / "base", vocabulary=TOKENIZER)
    write_scenes(folder)
    stages = RECIPE[RECIPE.index("[train.stage1]") :]
    for reading in ("official", "paper"):
        head = f'name = "small"\nbase = "{folder / "base"}"\nimage_size = {SIZE}\n\n[train]\nbf16 = false\n\n'
        (folder / f"{reading}.toml").write_text(head + stages.replace("READING", reading))
    return folder


def trained(work: Path, stage: Any, out: Path, reading: str = "official", **given: Any) -> Path:
    train(
        str(work / f"{reading}.toml"), stage, [str(work / "sim" / "triplets.jsonl")], out, log=lambda _: None, **given
    )
    return out


@pytest.fixture(scope="module")
def stage1(work: Path) -> Path:
    return trained(work, "1", work / "stage1")


def adapter_for(work: Path, folder: Path, **given: Any) -> Path:
    adapter_on(work / "base", folder, **given)
    if (folder / "tlm_config.json").is_file():
        rewrite_json(folder / "tlm_config.json", image_size=SIZE)
    return folder


# What is saved ------------------------------------------------------------------------------------------------------

# REFERENCE section 1, for this base: width 64, two layers, heads 4 and 2 of 16, inner width 96; r 8.
LORA_SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip
FILM_SHAPES = {"0.weight": (256, 64), "0.bias": (256,), "2.weight": (128, 256), "2.bias": (128,)}


def test_the_folder_of_a_stage_is_the_official_form(work: Path, stage1: Path) -> None:
    assert {p.name for p in stage1.iterdir()} - {"README.md"} == {
        "adapter_config.json", "adapter_model.safetensors", "vec64_film.pt", "tlm_config.json", "tokenizer.json",
        "manifest.json", "log",
    }  # fmt: skip
    expected = {}
    for layer in range(2):
        for linear, (rows, columns) in LORA_SHAPES.items():
            key = f"base_model.model.model.language_model.layers.{layer}.{linear}"
            expected |= {f"{key}.lora_A.weight": (8, columns), f"{key}.lora_B.weight": (rows, 8)}
    held = load_file(stage1 / "adapter_model.safetensors")
    assert {key: tuple(value.shape) for key, value in held.items()} == expected
    film = torch.load(stage1 / "vec64_film.pt", weights_only=True)
    assert list(film) == ["film_mlp"]
    assert {key: tuple(value.shape) for key, value in film["film_mlp"].items()} == FILM_SHAPES
    assert json.loads((stage1 / "tlm_config.json").read_text()) == {
        "format": "tlm_original_train_patch_resize_v1",
        "sigma": 2.0,
        "hidden_mult": 4,
        "image_size": SIZE,
        "vec_dim": 64,
    }
    config = json.loads((stage1 / "adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none"}
    assert wanted.items() <= config.items()
    assert config["base_model_name_or_path"] == str(work / "base")
    assert read_manifest(stage1).stage == "stage1"


def test_what_is_saved_loads_with_peft_and_torch_alone(work: Path, stage1: Path) -> None:
    merged = PeftModel.from_pretrained(hugging_face(work / "base"), str(stage1)).merge_and_unload().state_dict()
    film = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 128))
    film.load_state_dict(torch.load(stage1 / "vec64_film.pt", weights_only=True)["film_mlp"])
    model, tokenizer, manifest = load_checkpoint(stage1)  # the manifest says the base
    assert (tokenizer, manifest.stage) == (stage1 / "tokenizer.json", "stage1")
    assert not model.training
    found = model.state_dict()
    before = hugging_face(work / "base").state_dict()
    assert not torch.equal(merged[Q_PROJ], before[Q_PROJ])
    for name, value in merged.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    for key, value in film.state_dict().items():
        assert torch.equal(found[f"tlm.film_mlp.{key}"], value)
    assert film[2].weight.abs().max() > 0


# What is loaded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_answers_as_hugging_face_and_peft_do(tmp_path: Path, tied: bool) -> None:
    base = published(tmp_path / "base", tied=tied, dtype=torch.bfloat16)
    adapter = adapter_on(base, tmp_path / "adapter", old=True)
    model = load_checkpoint(adapter, recipe_on(base))[0]
    peft = PeftModel.from_pretrained(hugging_face(base), str(adapter)).eval()
    ids = torch.arange(20)[None]
    positions = torch.arange(20).expand(3, 1, -1)
    with torch.no_grad():
        hidden = model.model.language_model(input_ids=ids, position_ids=positions).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), peft(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert torch.equal(model.tlm.film_mlp[2].weight, random_film()["2.weight"])


def test_the_base_alone_is_a_checkpoint_whose_tlm_changes_nothing(work: Path) -> None:
    model, tokenizer, manifest = load_checkpoint("base", recipe_on(work / "base", SIZE))
    assert (tokenizer, manifest.stage) == (work / "base" / "tokenizer.json", "official")
    generator = torch.Generator().manual_seed(0)
    anchors = (torch.randn(1, 9, 64, generator=generator), torch.rand(1, 9, 2, generator=generator), torch.ones(1, 9))
    pixels = torch.rand(1, 1, SIZE, SIZE, generator=generator)
    with torch.no_grad():
        assert torch.equal(model.visual_tokens(pixels, *anchors), model.visual_tokens(pixels))


def test_without_a_recipe_an_official_checkpoint_is_refused_with_the_verb_for_it(work: Path, tmp_path: Path) -> None:
    adapter = adapter_for(work, tmp_path / "adapter")
    for target in (adapter, "hub:kkcyy/FUSAR-GPT/stage2/detection"):
        for load in (load_checkpoint, lambda given: open_session(str(given))):
            with pytest.raises(CheckpointError, match=r"nothing says its base: give --recipe NAME"):
                load(target)
    with pytest.raises(CheckpointError, match="is not a folder that `fusar-edge train` wrote"):
        load_checkpoint(tmp_path)


def test_an_official_folder_with_its_manifest_can_be_asked(stage1: Path) -> None:
    session = open_session(str(stage1))
    assert session.bundle.settings.image_size == SIZE
    assert session.bundle.manifest.stage == "stage1"


# What is trained on -------------------------------------------------------------------------------------------------


def test_stage_2_goes_on_with_a_legacy_adapter_and_its_vision_lora(work: Path, tmp_path: Path) -> None:
    settings = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.1, "target_modules": [*LANGUAGE, "qkv"]}
    legacy = adapter_for(work, tmp_path / "legacy", old=True, legacy=True, **settings)
    recipe = (work / "official.toml").read_text().replace(f"image_size = {SIZE}", "image_size = 504")
    (work / "legacy.toml").write_text(recipe)
    out = trained(work, "2", tmp_path / "stage2", "legacy", init=legacy, sigma=2.0)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 12, 0.1)
    assert set(config["target_modules"]) == set(settings["target_modules"])
    before, after = (_by_new_name(load_file(f / "adapter_model.safetensors")) for f in (legacy, out))
    assert before.keys() == after.keys()
    assert any("visual" in name for name in after)
    for kind in ("visual.blocks.0.attn.qkv.lora_B", "layers.1.mlp.up_proj.lora_B"):
        name = next(n for n in after if kind in n)
        assert 0 < (after[name] - before[name]).abs().max() < 0.02  # a few steps away from where it was
    film = torch.load(out / "vec64_film.pt", weights_only=True)["film_mlp"]
    assert all(torch.equal(value, random_film()[key]) for key, value in film.items())
    assert json.loads((out / "tlm_config.json").read_text())["sigma"] == 2.0
    inputs = read_manifest(out).inputs
    assert inputs["parent/vec64_film.pt"] == sha256_file(legacy / "vec64_film.pt")
    assert inputs["parent/adapter_model.safetensors"] == sha256_file(legacy / "adapter_model.safetensors")


def _by_new_name(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "base_model.model."
    found = {}
    for key, value in held.items():
        name = key.removeprefix(prefix)
        if not name.startswith(("model.language_model.", "model.visual.")):
            name = f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)
        found[prefix + name] = value
    return found


def test_stage_2_goes_on_from_a_stage_1_of_ours_and_from_the_hub(
    work: Path, stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(stage1.parent))
    ours = trained(work, "2", tmp_path / "ours", init=stage1)
    hub = trained(work, "2", tmp_path / "hub", init="hub:owner/repository/stage1")
    recipe = recipe_on(work / "base", SIZE)
    one, two, three = (open_weights(folder, recipe) for folder in (stage1, ours, hub))
    assert not torch.equal(one.tensor(Q_PROJ), two.tensor(Q_PROJ))
    assert torch.equal(two.tensor(Q_PROJ), three.tensor(Q_PROJ))
    assert torch.equal(one.tensor("tlm.film_mlp.2.weight"), two.tensor("tlm.film_mlp.2.weight"))
    assert read_manifest(ours).inputs["parent"] == sha256_file(stage1 / "manifest.json")
    with pytest.raises(CheckpointError, match="is a stage2; stage 1 starts from base or stage1"):
        trained(work, "1", tmp_path / "out", init=ours)


def test_a_lora_that_a_stage_does_not_train_is_handed_on(work: Path, tmp_path: Path) -> None:
    parent = adapter_for(work, tmp_path / "parent")
    out = trained(work, "1", tmp_path / "stage1", "paper", init=parent)
    recipe = recipe_on(work / "base", SIZE)
    before, after = open_weights(parent, recipe), open_weights(out, recipe)
    assert torch.equal(before.tensor(Q_PROJ), after.tensor(Q_PROJ))
    assert not torch.equal(before.tensor(Q_PROJ), hugging_face(work / "base").state_dict()[Q_PROJ])
    assert not torch.equal(before.tensor("tlm.film_mlp.2.weight"), after.tensor("tlm.film_mlp.2.weight"))


def test_a_stage_without_a_lora_saves_tlm_alone_and_stage_2_begins_one(work: Path, tmp_path: Path) -> None:
    one = trained(work, "1", tmp_path / "one", "paper")
    assert not (one / "adapter_config.json").exists()
    found = load_checkpoint(one)[0].state_dict()
    for name, value in hugging_face(work / "base").state_dict().items():
        assert torch.equal(found[name], value), name
    assert found["tlm.film_mlp.2.weight"].abs().max() > 0
    two = trained(work, "2", tmp_path / "two", "paper", init=one)
    assert (two / "adapter_model.safetensors").is_file()


def test_init_tells_the_word_base_from_a_folder_of_that_name(
    work: Path, stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stage1, "base")
    out = trained(work, "1", tmp_path / "folder", init="./base", scale=0.01)
    assert read_manifest(out).inputs["parent"] == sha256_file(stage1 / "manifest.json")
    trained(work, "1", tmp_path / "none", scale=0.01)  # without --init nothing is asked of the folder
    with pytest.raises(CheckpointError, match=r"give \./base for the folder"):
        trained(work, "1", tmp_path / "word", init="base")
    shutil.rmtree("base")
    out = trained(work, "1", tmp_path / "word", init="base", scale=0.01)
    assert not any(name.startswith("parent") for name in read_manifest(out).inputs)


def test_a_configuration_that_names_other_modules_than_the_file_is_not_trained_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for(work, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    rewrite_json(adapter / "adapter_config.json", target_modules=["q_proj"])
    monkeypatch.setattr("fusar_edge.train.run.checkpoint.model_from", None)  # refused before the weights are read
    with pytest.raises(CheckpointError, match=r"differ in model.language_model.layers.0.self_attn.v_proj"):
        trained(work, "2", tmp_path / "out", init=adapter)
    conv = adapter_for(work, tmp_path / "conv", target_modules=["q_proj", "patch_embed.proj"])
    with pytest.raises(CheckpointError, match="patch embedding"):
        trained(work, "2", tmp_path / "out", init=conv)
    rewrite_json(adapter / "adapter_config.json", target_modules="q_proj(")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is not of this model, PEFT says"):
        trained(work, "2", tmp_path / "out", init=adapter)
    assert not (tmp_path / "out.training").exists()


def test_a_checkpoint_of_a_recipe_from_scratch_is_a_whole_model_still(tmp_path: Path) -> None:
    shutil.copytree(shelf_folder("export") / "fusar-tiny", tmp_path / "fusar-tiny")
    (tmp_path / "official.toml").write_text(RECIPE.replace("READING", "official"))
    write_scenes(tmp_path)
    base = trained(tmp_path, "base", tmp_path / "base")
    out = trained(tmp_path, "1", tmp_path / "stage1", init=base)
    assert (out / "model.safetensors").is_file()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    model = load_checkpoint(out)[0]
    expected = FusarForConditionalGeneration.from_pretrained(out, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="recipe small has no published `base`"):
        trained(tmp_path, "2", tmp_path / "stage2", init=out / "adapter")


def test_a_model_is_the_sum_of_its_weights(work: Path, stage1: Path) -> None:
    weights = open_weights(stage1, recipe_on(work / "base", SIZE))
    model = model_from(weights)
    assert weights.bytes_fp32() == 4 * sum(math.prod(p.shape) for p in model.parameters())
    assert all(torch.equal(value, weights.tensor(name)) for name, value in model.named_parameters())

"""A recipe on a published Qwen2.5-VL: here one of the same architecture with random weights, in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from small_data import RECIPE, write_scenes
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.errors import CheckpointError
from fusar_edge.model.checkpoint import load_checkpoint, new_model
from fusar_edge.recipes import shelf_folder
from fusar_edge.specs import ModelRecipe
from fusar_edge.train.run import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TOKENIZER = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """What `from_pretrained` of the hub would have downloaded."""
    config = new_model(msgspec.toml.decode(RECIPE.replace("READING", "paper"), type=ModelRecipe), TOKENIZER).config
    del config.fusar
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path / "published")
    shutil.copyfile(TOKENIZER, tmp_path / "published" / "tokenizer.json")
    return tmp_path / "published"


def recipe_on(base: Path | str, folder: Path) -> str:
    stages = RECIPE[RECIPE.index("[train.stage1]") :].replace("READING", "paper")
    path = folder / "published.toml"
    path.write_text(f'name = "small"\nbase = "{base}"\nimage_size = 84\n\n[train]\nbf16 = false\n\n{stages}')
    return str(path)


def test_stage_1_starts_from_the_published_weights_and_trains_tlm_alone(published: Path, tmp_path: Path) -> None:
    recipe = recipe_on(published, tmp_path)
    train(recipe, "1", [str(write_scenes(tmp_path))], tmp_path / "stage1", log=lambda _: None)
    found = load_checkpoint(tmp_path / "stage1")[0].state_dict()
    expected = Qwen2_5_VLForConditionalGeneration.from_pretrained(published, dtype=torch.float32).state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert found["tlm.film_mlp.2.weight"].abs().max() > 0


def test_a_base_that_does_not_load_is_refused_with_the_remedy(tmp_path: Path) -> None:
    recipe = recipe_on(tmp_path / "nowhere", tmp_path)
    with pytest.raises(CheckpointError, match="local folder"):
        train(recipe, "1", [str(write_scenes(tmp_path))], tmp_path / "stage1", log=lambda _: None)
    assert not (tmp_path / "stage1.training").exists()

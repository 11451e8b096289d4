"""The small model's checkpoint and its exported graphs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import SMALL_RECIPE, random_model

from fusar_edge.export.run import write_graphs
from fusar_edge.manifest import Manifest, write_manifest
from fusar_edge.model.checkpoint import save_model
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.specs import ModelRecipe


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> ModelRecipe:
    return load_recipe("export", str(recipe_file), ModelRecipe)[0]


@pytest.fixture(scope="session")
def model(recipe: ModelRecipe) -> FusarForConditionalGeneration:
    return random_model(recipe)


@pytest.fixture(scope="session")
def checkpoint(model: FusarForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = folder / "source.json"
    tokenizer.write_text("{}")
    save_model(model, tokenizer, folder)
    tokenizer.unlink()
    write_manifest(folder, Manifest(stage="stage2", inputs={"data": "5" * 64}))
    return folder


@pytest.fixture(scope="session")
def graphs(model: FusarForConditionalGeneration, recipe: ModelRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with vision.onnx and decoder.onnx of `model`."""
    folder = tmp_path_factory.mktemp("graphs")
    write_graphs(model, recipe, folder)
    return folder

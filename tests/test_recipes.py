"""Every recipe on the shelves loads; a wrong one is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusar_edge.errors import RecipeError
from fusar_edge.recipes import SHELVES, load_recipe, recipe_names
from fusar_edge.specs import CalibRecipe, EngineSpec, ModelRecipe

KINDS = {"export": ModelRecipe, "calib": CalibRecipe, "engines": EngineSpec}


@pytest.mark.parametrize(("shelf", "name"), [(s, n) for s in SHELVES for n in recipe_names(s)])
def test_every_recipe_on_the_shelves_loads(shelf: str, name: str) -> None:
    recipe, text = load_recipe(shelf, name, KINDS[shelf])  # type: ignore[arg-type]  # a different kind for each shelf
    assert recipe.name == name
    assert text


@pytest.mark.parametrize("shelf", SHELVES)
def test_no_shelf_is_empty(shelf: str) -> None:
    assert recipe_names(shelf)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match="fusar-tiny"):
        load_recipe("export", "fusar-huge", ModelRecipe)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "cpu"', 'name = "cpu"\ncolour = "red"', "colour"),
        ('engine = "onnxruntime"', 'engine = "abacus"', "engine"),
        ("threads = 2", "threads = 0", "threads"),
        ("threads = 2", "threads = ", "cpu.toml"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_key(tmp_path: Path, before: str, after: str, message: str) -> None:
    _, text = load_recipe("engines", "cpu", EngineSpec)
    assert before in text
    path = tmp_path / "cpu.toml"
    path.write_text(text.replace(before, after))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("engines", str(path), EngineSpec)
    assert str(path) in str(caught.value)


def test_a_path_wins_over_a_name_and_must_exist(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("engines", str(tmp_path / "cpu.toml"), EngineSpec)


def test_an_image_size_off_the_patch_grid_is_refused(tmp_path: Path) -> None:
    _, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace("image_size = 252", "image_size = 250"))
    with pytest.raises(RecipeError, match="multiple of 28"):
        load_recipe("export", str(path), ModelRecipe)

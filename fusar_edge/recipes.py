"""Finds and reads the TOML recipes of the shelves `export/`, `calib/` and `engines/`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from fusar_edge.errors import RecipeError

SHELVES = ("export", "calib", "engines")
_PACKAGED = Path(__file__).parent / "_recipes"
_CHECKOUT = Path(__file__).parent.parent

T = TypeVar("T")


def shelf_folder(shelf: str) -> Path:
    """The installed shelf (`_recipes/SHELF` of the wheel), else the checkout's."""
    packaged = _PACKAGED / shelf
    return packaged if packaged.is_dir() else _CHECKOUT / shelf


def recipe_names(shelf: str) -> list[str]:
    return sorted(p.stem for p in shelf_folder(shelf).glob("*.toml"))


def recipe_path(shelf: str, name: str) -> Path:
    """Path of a recipe; what ends in `.toml` is a path, anything else a name on the shelf."""
    if name.endswith(".toml"):
        path = Path(name)
        if path.is_file():
            return path
        raise RecipeError(
            f"{name}: no such file; give a path to a .toml file or one of: {', '.join(recipe_names(shelf))}"
        )
    path = shelf_folder(shelf) / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise RecipeError(f"no recipe {name!r} on the shelf {shelf}/; there are: {', '.join(recipe_names(shelf))}")
    return path


def load_recipe(shelf: str, name: str, kind: type[T]) -> tuple[T, str]:
    """The recipe as a `kind` and its text. Unknown keys and wrong values raise RecipeError naming file and key."""
    path = recipe_path(shelf, name)
    try:
        text = path.read_text(encoding="utf-8")
        return msgspec.toml.decode(text, type=kind), text
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path}: {problem}") from None

"""`vec64_film.pt` and `tlm_config.json`: TLM in the official form (REFERENCE section 1)."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from fusar_edge.errors import CheckpointError
from fusar_edge.model.shards import is_finite
from fusar_edge.model.tlm import FORMAT, VECTOR_SIZE
from fusar_edge.specs import ModelRecipe

FILM = "vec64_film.pt"
CONFIG = "tlm_config.json"

_Size = Annotated[int, Meta(gt=0)]


class TlmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """tlm_config.json; the defaults are those of the legacy checkpoints, which lack the file."""

    sigma: Annotated[float, Meta(gt=0)]
    format: str = FORMAT
    hidden_mult: _Size = 4
    image_size: _Size = 504
    vec_dim: _Size = VECTOR_SIZE


def recipe_tlm(recipe: ModelRecipe) -> TlmConfig:
    return TlmConfig(sigma=recipe.tlm.sigma, hidden_mult=recipe.tlm.hidden_mult, image_size=recipe.image_size)


def read_tlm_config(folder: Path, recipe: ModelRecipe, sigma: float | None) -> TlmConfig:
    """Settings of the folder's TLM, equal to the recipe's; those of a folder without TLM are the recipe's.

    `sigma` is for a legacy folder.
    """
    path = folder / CONFIG
    if not (folder / FILM).is_file():
        if path.is_file():
            raise CheckpointError(f"{folder} has {CONFIG} and no {FILM}: copy the folder again")
        found = recipe_tlm(recipe)
    elif path.is_file():
        found = _decoded(path)
    elif sigma is None:
        raise CheckpointError(
            f"{folder} has no {CONFIG} (legacy form), so nothing says its sigma: give --sigma 2, the value that the "
            "released ones were trained with"
        )
    else:
        found = TlmConfig(sigma=sigma)
    if sigma is not None and sigma != found.sigma:
        raise CheckpointError(f"--sigma {sigma:g}: {folder} has sigma {found.sigma:g}; leave --sigma out")
    _check_recipe(path if path.is_file() else folder, found, recipe)
    return found


def _decoded(path: Path) -> TlmConfig:
    try:
        form = msgspec.json.decode(path.read_bytes())
        form = form.get("format") if isinstance(form, dict) else None
        if form != FORMAT:
            raise CheckpointError(f"{path}: format {form!r}; allowed is {FORMAT!r}")
        return msgspec.json.decode(path.read_bytes(), type=TlmConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise CheckpointError(f"{path}: {problem}") from None


def _check_recipe(path: Path, found: TlmConfig, recipe: ModelRecipe) -> None:
    said: dict[str, tuple[float, float]] = {
        "vec_dim": (found.vec_dim, VECTOR_SIZE),
        "image_size": (found.image_size, recipe.image_size),
        "sigma": (found.sigma, recipe.tlm.sigma),
        "hidden_mult": (found.hidden_mult, recipe.tlm.hidden_mult),
    }
    for key, (value, wanted) in said.items():
        if value != wanted:
            whose = "an AlphaEarth vector has" if key == "vec_dim" else f"the recipe {recipe.name} says"
            raise CheckpointError(
                f"{path} has {key} {value:g}, {whose} {wanted:g}: give the recipe that the checkpoint was trained with"
            )


def film_shapes(channels: int, hidden_mult: int) -> dict[str, tuple[int, ...]]:
    """Shapes of Sequential(Linear, SiLU, Linear)."""
    hidden = max(128, hidden_mult * channels)
    return {
        "0.weight": (hidden, VECTOR_SIZE),
        "0.bias": (hidden,),
        "2.weight": (2 * channels, hidden),
        "2.bias": (2 * channels,),
    }


def read_film(path: Path) -> dict[str, Tensor]:
    """State of `film_mlp` as it is stored, mapped where the file's form allows it. Nothing in the file is executed."""
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path} is not a file of tensors alone, as torch.save writes it: {reason}; nothing of it was run; "
            "get it again from where you trust it"
        ) from None
    if not isinstance(held, dict) or set(held) != {"film_mlp"} or not isinstance(held["film_mlp"], dict):
        keys = ", ".join(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise CheckpointError(f'{path} holds {keys}; allowed is {{"film_mlp": state of the MLP}} alone')
    return dict(held["film_mlp"])


def check_film(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """CheckpointError unless the file holds finite tensors of just these names and shapes."""
    found = read_film(path)
    if set(found) != set(shapes):
        raise CheckpointError(f"{path}: film_mlp has {', '.join(map(str, found))}; allowed are {', '.join(shapes)}")
    for key, shape in shapes.items():
        value = found[key]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise CheckpointError(f"{path}: film_mlp.{key} is not a tensor of floats")
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{path}: film_mlp.{key} is {list(value.shape)}, the base and the TLM settings make it {list(shape)}: "
                "give the base and the hidden_mult that it was trained with"
            )
        if not is_finite(value):
            raise CheckpointError(f"{path}: film_mlp.{key} holds NaN or infinity: its training diverged")


def identity_film(channels: int, hidden_mult: int) -> dict[str, Tensor]:
    """gamma = beta = 0 for every anchor. The first layer is random, the same each time, so that training can begin."""
    shapes = film_shapes(channels, hidden_mult)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Linear(VECTOR_SIZE, shapes["0.bias"][0])
    zeros = {key: torch.zeros(shapes[key]) for key in ("2.weight", "2.bias")}
    return {"0.weight": first.weight.detach(), "0.bias": first.bias.detach(), **zeros}

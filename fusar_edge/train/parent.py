"""What `--init` names: the checkpoint that a stage goes on from."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.errors import CheckpointError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.model.adapter import CONFIG
from fusar_edge.model.checkpoint import OFFICIAL
from fusar_edge.model.hub import ADAPTER_FILES
from fusar_edge.model.weights import BASE, Weights, is_official, open_weights
from fusar_edge.specs import ModelRecipe


def open_parent(init: Path, recipe: ModelRecipe, stage: str, sigma: float | None) -> Weights:
    """The parent's weights; CheckpointError where the stage does not start from such a one."""
    weights = open_weights(init, recipe, sigma=sigma)
    allowed = {"base": ("base",), "1": ("base", "stage1"), "2": ("stage1", "stage2")}[stage]
    found = weights.manifest.stage if weights.manifest else OFFICIAL  # which says no stage
    if found not in allowed and (found != OFFICIAL or stage == "base"):
        raise CheckpointError(f"{init} is a {found}; stage {stage} starts from {' or '.join(allowed)}")
    return weights


def parent_lora(init: Path | None, recipe: ModelRecipe) -> Path | None:
    """Folder of the parent's LoRA, where it has one."""
    folder = _folder(init, recipe)
    if folder is None:
        return None
    lora = folder if is_official(folder) else folder / "adapter"
    return lora if (lora / CONFIG).is_file() else None


def parent_hashes(init: Path | None, recipe: ModelRecipe) -> dict[str, str]:
    """The parent's manifest, which names all else; of a checkpoint without one, each of its files."""
    folder = _folder(init, recipe)
    if folder is None:
        return {}
    if (folder / FILENAME).is_file():
        return {"parent": sha256_file(folder / FILENAME)}
    return {f"parent/{name}": sha256_file(folder / name) for name in ADAPTER_FILES if (folder / name).is_file()}


def _folder(init: Path | None, recipe: ModelRecipe) -> Path | None:
    return None if init is None or (recipe.base and str(init) == BASE) else init

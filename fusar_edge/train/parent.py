"""What `--init` names: the checkpoint that a stage goes on from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import Qwen2_5_VLConfig
from transformers.modeling_utils import no_init_weights

from fusar_edge.errors import CheckpointError
from fusar_edge.manifest import FILENAME, sha256_file
from fusar_edge.model.adapter import CONFIG, lora_modules
from fusar_edge.model.checkpoint import OFFICIAL
from fusar_edge.model.hub import ADAPTER_FILES
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.weights import Weights, is_base, is_official, open_weights
from fusar_edge.specs import ModelRecipe


def open_parent(init: str | Path, recipe: ModelRecipe, stage: str, sigma: float | None) -> Weights:
    """The parent's weights; CheckpointError where the stage does not start from such a one, or not from its LoRA."""
    weights = open_weights(init, recipe, sigma=sigma)
    allowed = {"base": ("base",), "1": ("base", "stage1"), "2": ("stage1", "stage2")}[stage]
    found = weights.manifest.stage if weights.manifest else OFFICIAL  # which says no stage
    if found not in allowed and (found != OFFICIAL or stage == "base"):
        raise CheckpointError(f"{init} is a {found}; stage {stage} starts from {' or '.join(allowed)}")
    lora = parent_lora(init, recipe)
    if lora is not None and (stage == "2" or recipe.train.stage1.reading != "paper"):  # which hands it on as it is
        _check_lora(lora, weights.config)
    return weights


def _check_lora(folder: Path, config: Qwen2_5_VLConfig) -> None:
    """CheckpointError where PEFT would not train what the folder's file holds. No weight is read."""
    held, made = lora_modules(folder), _made_by_peft(folder, config)
    if held != made:
        raise CheckpointError(
            f"{folder}: target_modules of {CONFIG} and the weights beside it differ in {min(held ^ made)}: PEFT cannot "
            "go on with them; name in target_modules the modules that the file holds"
        )
    if any("patch_embed" in name for name in made):
        raise CheckpointError(
            f"{folder} has a LoRA of the patch embedding, which is folded for grey images and cannot be trained: "
            "merge it with PEFT, and give the result as the recipe's `base`"
        )


def _made_by_peft(folder: Path, config: Qwen2_5_VLConfig) -> set[str]:
    """Modules that PEFT puts a LoRA on."""
    with no_init_weights(), torch.device("meta"):
        model = FusarForConditionalGeneration(config)
    try:
        inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model, low_cpu_mem_usage=True)
    except (re.error, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise CheckpointError(f"{folder / CONFIG} is not of this model, PEFT says: {problem}") from None
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def parent_lora(init: str | Path | None, recipe: ModelRecipe) -> Path | None:
    """Folder of the parent's LoRA, where it has one."""
    folder = _folder(init, recipe)
    if folder is None:
        return None
    lora = folder if is_official(folder) else folder / "adapter"
    return lora if (lora / CONFIG).is_file() else None


def parent_hashes(init: str | Path | None, recipe: ModelRecipe) -> dict[str, str]:
    """The parent's manifest, which names all else; of a checkpoint without one, each of its files."""
    folder = _folder(init, recipe)
    if folder is None:
        return {}
    if (folder / FILENAME).is_file():
        return {"parent": sha256_file(folder / FILENAME)}
    return {f"parent/{name}": sha256_file(folder / name) for name in ADAPTER_FILES if (folder / name).is_file()}


def _folder(init: str | Path | None, recipe: ModelRecipe) -> Path | None:
    return None if init is None or is_base(init, recipe) else Path(init)

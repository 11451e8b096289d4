"""Folders of the Hugging Face hub: `hub:OWNER/REPO[/SUB/FOLDER]`, and a recipe's published base."""

from __future__ import annotations

import re
from pathlib import Path

from fusar_edge.errors import CheckpointError
from fusar_edge.specs import ModelRecipe

PREFIX = "hub:"
_FORM = re.compile(r"hub:([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.-]*)*)/?")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "vec64_film.pt", "tlm_config.json")
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "chat_template.json",
)  # fmt: skip


def local_folder(checkpoint: str | Path) -> Path:
    """The folder itself, or what `hub:OWNER/REPO[/SUB/FOLDER]` names, downloaded to the hub's cache."""
    if not str(checkpoint).startswith(PREFIX):
        return Path(checkpoint)
    match = _FORM.fullmatch(str(checkpoint))
    if match is None:
        raise CheckpointError(
            f"{checkpoint}: the form is hub:OWNER/REPO or hub:OWNER/REPO/SUB/FOLDER, "
            "such as hub:kkcyy/FUSAR-GPT/stage2/detection"
        )
    repository, sub = match[1], match[2].strip("/")
    names = (*ADAPTER_FILES, *PROCESSOR_FILES)
    root = _snapshot(repository, [f"{sub}/{name}" if sub else name for name in names], str(checkpoint))
    folder = root / sub
    if not any((folder / name).is_file() for name in ADAPTER_FILES):
        raise CheckpointError(
            f"{checkpoint}: {repository} has none of {', '.join(ADAPTER_FILES)} in {sub or 'its top folder'}: "
            "name the folder that holds them"
        )
    return folder


def base_folder(recipe: ModelRecipe) -> Path:
    """The recipe's published Qwen2.5-VL: its `base` as a folder, or downloaded from the hub."""
    if recipe.base is None:
        raise CheckpointError(
            f"the recipe {recipe.name} has no published `base`: give a folder that `fusar-edge train` wrote, or a "
            "recipe with `base`, such as fusar-gpt-7b"
        )
    folder = Path(recipe.base)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", recipe.base):
        raise CheckpointError(
            f"{recipe.base}, the base of the recipe {recipe.name}, is no folder: give a local folder or a name of the "
            "hub as the recipe's `base`"
        )
    what = f"{recipe.base}, the base of the recipe {recipe.name}"
    return _snapshot(recipe.base, ["*.safetensors", "*.json"], what, "as the recipe's `base`")


def _snapshot(repository: str, patterns: list[str], what: str, where: str = "as the checkpoint") -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError) as problem:  # of the network, of the hub, of its cache; its own errors are OSErrors
        reason = str(problem).strip().partition("\n")[0]
        raise CheckpointError(
            f"{what} does not come from the hub: {reason}; where the hub cannot be reached, download {repository} on a "
            f"machine that reaches it and give the local folder {where}"
        ) from None

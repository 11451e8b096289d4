"""A checkpoint's configuration against the recipe that it is used with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from transformers import Qwen2_5_VLConfig

from fusar_edge.errors import CheckpointError
from fusar_edge.specs import ModelRecipe


def check_config(config: Qwen2_5_VLConfig, recipe: ModelRecipe, checkpoint: Path) -> None:
    """CheckpointError where the checkpoint is not of this recipe. `config` has `fusar`."""
    said: dict[str, tuple[Any, Any]] = {
        "image_size": (recipe.image_size, config.fusar["image_size"]),
        "tlm.sigma": (recipe.tlm.sigma, config.fusar["sigma"]),
        "tlm.hidden_mult": (recipe.tlm.hidden_mult, config.fusar["hidden_mult"]),
    }
    for name, spec, part in (
        ("vision", recipe.vision, config.vision_config),
        ("text", recipe.text, config.text_config),
    ):
        for key, value in (msgspec.to_builtins(spec) if spec else {}).items():
            found = part.rope_scaling[key] if key == "mrope_section" else getattr(part, key)
            said[f"{name}.{key}"] = (_plain(value), _plain(found))
    for key, (wanted, found) in said.items():
        if wanted != found:
            raise CheckpointError(
                f"{checkpoint} has {key} {found}, the recipe {recipe.name} says {wanted}: give its own recipe"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value

"""The models of the session: fusar-tiny, and few layers at the width of the 3B and the 7B. Weights come from a seed.

Needs the workshop (torch, transformers 4.57). Nothing large travels: the GPU machine makes the same weights itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fusar_edge.recipes import load_recipe, shelf_folder
from fusar_edge.specs import ModelRecipe, TextSpec, VisionSpec

if TYPE_CHECKING:
    from fusar_edge.model.network import FusarForConditionalGeneration

MODELS = ("tiny", "3b", "7b")
VISION_LAYERS, TEXT_LAYERS = 4, 2
"""Of a slice: three windowed blocks and one with full attention; two layers of the language model."""
_TEXT = {
    "3b": TextSpec(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=2,
        mrope_section=(16, 24, 24),
    ),
    "7b": TextSpec(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=28,
        num_key_value_heads=4,
        mrope_section=(16, 24, 24),
    ),
}
"""Widths of Qwen2.5-VL's config.json files."""
_VISION = VisionSpec(
    depth=VISION_LAYERS,
    hidden_size=1280,
    num_heads=16,
    intermediate_size=3420,
    window_size=112,
    fullatt_block_indexes=(VISION_LAYERS - 1,),
)


def tokenizer_file() -> Path:
    """fusar-tiny's, for all of them: a vocabulary of thousands, so that few layers are most of a slice's bytes."""
    return shelf_folder("export") / "fusar-tiny" / "tokenizer.json"


def recipe_of(name: str) -> ModelRecipe:
    tiny, _ = load_recipe("export", "fusar-tiny", ModelRecipe)
    if name == "tiny":
        return tiny
    changes = {"vision": _VISION, "text": _TEXT[name], "image_size": 504, "anchor_nodes": 18}
    return msgspec.structs.replace(tiny, name=f"slice-{name}", **changes)


def model_of(name: str) -> FusarForConditionalGeneration:
    """Random in every parameter, in eval mode and float32; the same on every machine with the same torch.

    Weights have the scale that keeps activations near 1, as training does; TLM too is not the identity.
    """
    import torch

    from fusar_edge.model.checkpoint import new_model

    model = new_model(recipe_of(name), tokenizer_file()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and "embed_tokens" not in key else 0.02
            parameter.normal_(0, scale, generator=generator)
            if "norm" in key or "ln_q" in key:
                parameter.add_(1)
    return model

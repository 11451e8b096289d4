"""A very small model of the right architecture, for the tests of model and export."""

from __future__ import annotations

import msgspec
import torch

from fusar_edge.model.network import FusarForConditionalGeneration, network_config
from fusar_edge.specs import ModelRecipe

SMALL_RECIPE = """
name = "small"
image_size = 140          # 10 x 10 patches, 5 x 5 cells, windows of 2 cells: four whole, four halves, one corner
tokenizer = "small"
anchor_nodes = 5

[vision]
depth = 3
hidden_size = 32
num_heads = 2
intermediate_size = 48
window_size = 56
fullatt_block_indexes = [1]

[text]
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
mrope_section = [2, 3, 3]

[train.base]
phases = [{ name = "see", steps = 1 }]

[train.stage1]
epochs = 1
lr = 1e-4

[train.stage2]
epochs = 1
lr = 1e-4
"""

TOKENS = {"vocab_size": 128, "bos": 120, "eos": 121, "image": 122, "video": 123, "vision_start": 124, "vision_end": 125}


def random_model(recipe: ModelRecipe, seed: int = 0) -> FusarForConditionalGeneration:
    """Random in every parameter: Hugging Face's own start has zero biases and unit norms, which hide mistakes."""
    assert recipe.vision is not None
    assert recipe.text is not None
    vision = msgspec.to_builtins(recipe.vision) | {"out_hidden_size": recipe.text.hidden_size}
    vision["fullatt_block_indexes"] = list(recipe.vision.fullatt_block_indexes)
    text = msgspec.to_builtins(recipe.text) | {"mrope_section": list(recipe.text.mrope_section)}
    config = network_config(vision, text, recipe.image_size, recipe.tlm.sigma, recipe.tlm.hidden_mult, TOKENS)
    model = FusarForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and "embed_tokens" not in name else 0.3
            parameter.copy_(scale * noise + (1.0 if "norm" in name or "ln_q" in name else 0.0))
    return model

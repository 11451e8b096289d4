"""A very small recipe, four simulated scenes, and the small tokenizer, for the tests of training."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.data.simulator import write_dataset
from fusar_edge.recipes import shelf_folder

RECIPE = """
name = "small"
image_size = 84
tokenizer = "fusar-tiny"
anchor_nodes = 9

[vision]
depth = 2
hidden_size = 32
num_heads = 2
intermediate_size = 48
window_size = 28
fullatt_block_indexes = [1]

[text]
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
mrope_section = [2, 3, 3]

[train]
bf16 = false

[train.base]
phases = [
    { name = "see", steps = 2, batch = 2 },
    { name = "tell", steps = 4, batch = 2, tasks = ["count", "grid", "detect", "caption"], questions = 3 },
]

[train.stage1]
epochs = 1
lr = 1e-3
batch = 2
tasks = ["caption"]
reading = "READING"

[train.stage2]
epochs = 1
lr = 1e-3
batch = 2
"""


def write_recipe(folder: Path, reading: str = "official") -> Path:
    """A recipe file with the shelf's tokenizer beside it."""
    path = folder / f"small-{reading}.toml"
    path.write_text(RECIPE.replace("READING", reading))
    link = folder / "fusar-tiny"
    if not link.exists():
        link.symlink_to(shelf_folder("export") / "fusar-tiny")
    return path


def write_scenes(folder: Path) -> Path:
    """Four scenes with anchors; returns their manifest."""
    write_dataset(folder / "sim", 4, 3, size=504)
    return folder / "sim" / "triplets.jsonl"

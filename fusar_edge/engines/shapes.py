"""Shape of a model as the planner needs it: its layers by name, their sizes, and how often each runs. No torch.

Names are those of the graphs (export/README.md), so that the patterns of a calib recipe apply as they do in
fusar_edge.calib.qdq.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fusar_edge.errors import RecipeError
from fusar_edge.recipes import recipe_path
from fusar_edge.specs import ModelRecipe, TextSpec, VisionSpec

PATCH, MERGE = 14, 2
BANDS = 64
BAKED_RANK = 32

Rows = Literal["patches", "tokens", "anchors", "new", "last"]
"""What a layer runs over: patches, visual tokens, anchors; new tokens of the decoder; the last of them alone."""


@dataclass(frozen=True)
class Linear:
    """A layer with a weight matrix."""

    name: str
    inputs: int
    outputs: int
    rows: Rows
    bias: bool = False


@dataclass(frozen=True)
class Tower:
    """Vision tower."""

    depth: int
    hidden: int
    heads: int
    intermediate: int
    patches: int
    """Per image, before four of them merge into one token."""
    full_blocks: int
    """Blocks whose attention spans the image."""
    window_pairs: int
    """Pairs of patches that meet in the other blocks' attention."""
    patch_values: int = PATCH * PATCH
    """Values of a patch: one channel, the fold of a grey image."""
    gated: bool = True
    """MLP of three matrices (Qwen2.5-VL) or two (Qwen3-VL)."""
    mergers: int = 1
    """Qwen3-VL has one more for each level of DeepStack."""


@dataclass(frozen=True)
class Language:
    """Language model. Names as in Hugging Face's config.json."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Embedding and head share their weights."""
    qkv_bias: bool = True

    @property
    def cache_values(self) -> int:
        """Numbers that a token has in the KV cache."""
        return self.layers * 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ModelShape:
    """A model on one image size."""

    name: str
    tower: Tower
    language: Language
    anchors: int = 0
    """Nodes that are looked up for a tile."""
    tlm_hidden: int = 0
    """Width of TLM's MLP; 0: no TLM."""
    baked_rank: int = 0
    """Coefficients of an anchor where a baked table replaces the MLP."""

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.tower.patches // (MERGE * MERGE)

    @property
    def parameters(self) -> int:
        """Weights of all layers and the embedding, a tied one once."""
        linears = sum(x.inputs * x.outputs for x in (*vision_linears(self), *decoder_linears(self)))
        return linears + (0 if self.language.tied else self.language.vocab * self.language.hidden)

    def baked(self, rank: int = BAKED_RANK) -> ModelShape:
        return replace(self, baked_rank=rank)


def vision_linears(shape: ModelShape) -> Iterator[Linear]:
    tower, width = shape.tower, shape.language.hidden
    hidden, inner, merged = tower.hidden, tower.intermediate, tower.hidden * MERGE * MERGE
    yield Linear("vision.patch_embed", tower.patch_values, hidden, "patches", bias=True)
    for index in range(tower.depth):
        block = f"vision.blocks.{index}"
        yield Linear(f"{block}.attn.qkv", hidden, 3 * hidden, "patches", bias=True)
        yield Linear(f"{block}.attn.proj", hidden, hidden, "patches", bias=True)
        for name in ("gate_proj", "up_proj") if tower.gated else ("up_proj",):
            yield Linear(f"{block}.mlp.{name}", hidden, inner, "patches", bias=True)
        yield Linear(f"{block}.mlp.down_proj", inner, hidden, "patches", bias=True)
    for index in range(tower.mergers):
        merger = "vision.merger" if index == 0 else f"vision.deepstack.{index - 1}"
        yield Linear(f"{merger}.mlp.0", merged, merged, "tokens", bias=True)
        yield Linear(f"{merger}.mlp.2", merged, width, "tokens", bias=True)
    if shape.baked_rank:
        yield Linear("tlm.basis", shape.baked_rank, 2 * width, "tokens")
    elif shape.tlm_hidden:
        yield Linear("tlm.film_mlp.0", BANDS, shape.tlm_hidden, "anchors", bias=True)
        yield Linear("tlm.film_mlp.2", shape.tlm_hidden, 2 * width, "anchors", bias=True)


def decoder_linears(shape: ModelShape) -> Iterator[Linear]:
    """All but the embedding, which is looked up and not multiplied."""
    text = shape.language
    query, key = text.heads * text.head_dim, text.kv_heads * text.head_dim
    for index in range(text.layers):
        layer = f"decoder.layers.{index}"
        for name, outputs in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            yield Linear(f"{layer}.self_attn.{name}", text.hidden, outputs, "new", bias=text.qkv_bias)
        yield Linear(f"{layer}.self_attn.o_proj", query, text.hidden, "new")
        yield Linear(f"{layer}.mlp.gate_proj", text.hidden, text.intermediate, "new")
        yield Linear(f"{layer}.mlp.up_proj", text.hidden, text.intermediate, "new")
        yield Linear(f"{layer}.mlp.down_proj", text.intermediate, text.hidden, "new")
    yield Linear("decoder.lm_head", text.hidden, text.vocab, "last")


# Where the shapes come from -----------------------------------------------------------------------------------------

_QWEN25_TOWER = VisionSpec(
    depth=32,
    hidden_size=1280,
    num_heads=16,
    intermediate_size=3420,
    window_size=112,
    fullatt_block_indexes=(7, 15, 23, 31),
)
PUBLISHED_BASES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (_QWEN25_TOWER, Language(2048, 11008, 36, 16, 2, 128, 151936, tied=True)),
    "Qwen/Qwen2.5-VL-7B-Instruct": (_QWEN25_TOWER, Language(3584, 18944, 28, 28, 4, 128, 152064, tied=False)),
}
"""Hub id -> shapes, written down without that repository at hand; they add up to the published parameters."""


def shape_from_recipe(recipe: ModelRecipe, recipe_name: str) -> ModelShape:
    """`recipe_name`: as `--model` had it, to find the tokenizer beside the recipe. RecipeError for an unknown base."""
    if recipe.base is None:
        assert recipe.vision is not None
        assert recipe.text is not None
        vision, language = recipe.vision, _language(recipe.text, _vocabulary(recipe, recipe_name))
    elif recipe.base in PUBLISHED_BASES:
        vision, language = PUBLISHED_BASES[recipe.base]
    else:
        raise RecipeError(
            f"{recipe_name}: the planner does not know the shape of base {recipe.base!r}; it knows: "
            f"{', '.join(PUBLISHED_BASES)}, and models from scratch, with [vision] and [text]"
        )
    return ModelShape(
        recipe.name,
        tower_from_spec(vision, recipe.image_size),
        language,
        anchors=recipe.anchor_nodes**2,
        tlm_hidden=max(128, recipe.tlm.hidden_mult * language.hidden),
    )


def tower_from_spec(vision: VisionSpec, image_size: int) -> Tower:
    side = image_size // PATCH
    window = vision.window_size // PATCH
    widths = [min(window, side - start) for start in range(0, side, window)]
    return Tower(
        vision.depth,
        vision.hidden_size,
        vision.num_heads,
        vision.intermediate_size,
        patches=side * side,
        full_blocks=len(vision.fullatt_block_indexes),
        window_pairs=sum(width * width for width in widths) ** 2,
    )


def _language(text: TextSpec, vocab: int) -> Language:
    """fusar_edge.model.network ties the embedding of a model from scratch."""
    head_dim = text.hidden_size // text.num_attention_heads
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return Language(
        text.hidden_size, text.intermediate_size, text.num_hidden_layers, heads, kv_heads, head_dim, vocab, tied=True
    )


def _vocabulary(recipe: ModelRecipe, recipe_name: str) -> int:
    """Width of the logits: the tokenizer's entries, rounded up to 64 as in fusar_edge.model.checkpoint."""
    path = recipe_path("export", recipe_name).parent / str(recipe.tokenizer) / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = set(content["model"]["vocab"].values()) | {token["id"] for token in content["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise RecipeError(
            f"{path}: no tokenizer that can be read ({problem}); the recipe {recipe.name} names it"
        ) from None
    return -(-len(entries) // 64) * 64

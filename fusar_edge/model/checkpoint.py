"""Checkpoint folders: the whole model, the official adapter form beside it, and their lineage.

DIR/config.json model.safetensors    the model, LoRA merged, TLM inside
DIR/tokenizer.json
DIR/adapter/                         official form: PEFT adapter, vec64_film.pt, tlm_config.json
DIR/manifest.json                    stage, recipe, hashes of parent and data
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from fusar_edge.errors import CheckpointError, RecipeError
from fusar_edge.manifest import Manifest, read_manifest
from fusar_edge.model.network import FusarForConditionalGeneration, network_config, with_fusar
from fusar_edge.model.tlm import FORMAT, VECTOR_SIZE
from fusar_edge.recipes import recipe_path
from fusar_edge.specs import ModelRecipe

WEIGHTS = "model.safetensors"


def tokenizer_path(recipe: ModelRecipe, recipe_name: str) -> Path:
    """`tokenizer.json` of a recipe without a published base."""
    path = recipe_path("export", recipe_name).parent / str(recipe.tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise RecipeError(f"{path} does not exist: the recipe's `tokenizer` names a folder beside the recipe")
    return path


def new_model(recipe: ModelRecipe, tokenizer: Path, seed: int = 0) -> FusarForConditionalGeneration:
    """A model from scratch in the shape of the recipe. TLM starts as the identity."""
    import msgspec
    from tokenizers import Tokenizer

    assert recipe.vision is not None
    assert recipe.text is not None
    words = Tokenizer.from_file(str(tokenizer))
    ids = {
        "vocab_size": -(-words.get_vocab_size() // 64) * 64,
        "bos": words.token_to_id("<|endoftext|>"),
        "eos": words.token_to_id("<|im_end|>"),
        "image": words.token_to_id("<|image_pad|>"),
        "video": words.token_to_id("<|video_pad|>"),
        "vision_start": words.token_to_id("<|vision_start|>"),
        "vision_end": words.token_to_id("<|vision_end|>"),
    }
    vision = msgspec.to_builtins(recipe.vision) | {"out_hidden_size": recipe.text.hidden_size}
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    text = msgspec.to_builtins(recipe.text) | {"mrope_section": list(recipe.text.mrope_section)}
    config = network_config(vision, text, recipe.image_size, recipe.tlm.sigma, recipe.tlm.hidden_mult, ids)
    torch.manual_seed(seed)
    return _with_identity_tlm(FusarForConditionalGeneration(config))


def _with_identity_tlm(model: FusarForConditionalGeneration) -> FusarForConditionalGeneration:
    """gamma = beta = 0 at the start: stage 1 begins from plain Qwen2.5-VL."""
    for parameter in model.tlm.film_mlp[2].parameters():
        torch.nn.init.zeros_(parameter)
    return model


def published_model(recipe: ModelRecipe) -> FusarForConditionalGeneration:
    """The recipe's published Qwen2.5-VL, from its folder or the hub, with a fresh TLM."""
    from transformers import Qwen2_5_VLConfig

    try:
        config = Qwen2_5_VLConfig.from_pretrained(str(recipe.base))
        config = with_fusar(config, recipe.image_size, recipe.tlm.sigma, recipe.tlm.hidden_mult)
        model = FusarForConditionalGeneration.from_pretrained(recipe.base, config=config)
    except (OSError, ValueError, RuntimeError) as problem:
        raise CheckpointError(
            f"{recipe.base}, the base of the recipe {recipe.name}, does not load: {problem}; where the hub cannot be "
            "reached, give a local folder as the recipe's `base`"
        ) from None
    return _with_identity_tlm(model)


def published_tokenizer(recipe: ModelRecipe) -> Path:
    """`tokenizer.json` of the recipe's published base: of its folder, or from the hub."""
    folder = Path(str(recipe.base))
    if folder.is_dir():
        return folder / "tokenizer.json"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(recipe.base), "tokenizer.json"))


def save_model(model: FusarForConditionalGeneration, tokenizer: Path, folder: Path) -> None:
    """Weights, config and tokenizer; the caller adds the manifest."""
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def save_adapter(peft_model: Any, model: FusarForConditionalGeneration, folder: Path) -> None:
    """The official adapter form (REFERENCE section 1); `peft_model` None where no LoRA was trained."""
    folder.mkdir(parents=True, exist_ok=True)
    if peft_model is not None:
        peft_model.save_pretrained(folder)
    torch.save({"film_mlp": model.tlm.film_mlp.state_dict()}, folder / "vec64_film.pt")
    config = {
        "format": FORMAT,
        "sigma": model.tlm.sigma,
        "hidden_mult": model.tlm.hidden_mult,
        "image_size": model.config.fusar["image_size"],
        "vec_dim": VECTOR_SIZE,
    }
    (folder / "tlm_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_checkpoint(folder: Path) -> tuple[FusarForConditionalGeneration, Path, Manifest]:
    """(model in float32 and eval mode, path of its tokenizer.json, manifest)."""
    folder = Path(folder)
    manifest = read_manifest(folder, CheckpointError)
    if not (folder / WEIGHTS).is_file() and not (folder / f"{WEIGHTS}.index.json").is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}: give a folder that `fusar-edge train` wrote")
    try:
        model = FusarForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as problem:
        raise CheckpointError(f"{folder} does not load: {problem}") from None
    return model.eval(), folder / "tokenizer.json", manifest

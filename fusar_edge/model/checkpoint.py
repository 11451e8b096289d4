"""Checkpoint folders, written and read as a whole model (fusar_edge.model.weights reads them tensor by tensor).

DIR/manifest.json                    stage, recipe, hashes of parent and data
DIR/tokenizer.json
of a recipe from scratch:
DIR/config.json model.safetensors    the model, LoRA merged, TLM inside
DIR/adapter/                         official form: PEFT adapter, vec64_film.pt, tlm_config.json
of a recipe with a published base:
DIR/                                 official form
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch
from transformers.modeling_utils import no_init_weights

from fusar_edge.errors import CheckpointError, RecipeError
from fusar_edge.manifest import FILENAME, Manifest, read_manifest
from fusar_edge.model import film
from fusar_edge.model.adapter import CONFIG as LORA_CONFIG
from fusar_edge.model.adapter import WEIGHTS as LORA_WEIGHTS
from fusar_edge.model.hub import PREFIX
from fusar_edge.model.network import FusarForConditionalGeneration, network_config
from fusar_edge.model.tlm import FORMAT, VECTOR_SIZE
from fusar_edge.model.weights import BASE, Weights, is_official, open_weights, own_weights
from fusar_edge.recipes import recipe_path
from fusar_edge.specs import ModelRecipe

OFFICIAL = "official"
"""Stage of a checkpoint that no fusar-edge made."""


def tokenizer_path(recipe: ModelRecipe, recipe_name: str) -> Path:
    """`tokenizer.json` of a recipe without a published base."""
    path = recipe_path("export", recipe_name).parent / str(recipe.tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise RecipeError(f"{path} does not exist: the recipe's `tokenizer` names a folder beside the recipe")
    return path


def new_model(recipe: ModelRecipe, tokenizer: Path, seed: int = 0) -> FusarForConditionalGeneration:
    """A model from scratch in the shape of the recipe. TLM starts as the identity."""
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


def save_model(model: FusarForConditionalGeneration, tokenizer: Path, folder: Path) -> None:
    """Weights, config and tokenizer; the caller adds the manifest."""
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def save_stage(
    peft_model: Any,
    model: FusarForConditionalGeneration,
    tokenizer: Path,
    folder: Path,
    base: str | None,
    parent_lora: Path | None,
) -> None:
    """Stage 1 or 2: on a published base the official form, from scratch the merged model with that form beside it.

    `parent_lora`: folder of a LoRA that the model began with. Where the stage trained none it is handed on.
    """
    if base is None:
        save_adapter(peft_model, model, folder / "adapter")
        save_model(peft_model.merge_and_unload() if peft_model is not None else model, tokenizer, folder)
        return
    save_adapter(peft_model, model, folder, base)
    if peft_model is None and parent_lora is not None:
        for name in (LORA_CONFIG, LORA_WEIGHTS):
            shutil.copyfile(parent_lora / name, folder / name)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def save_adapter(peft_model: Any, model: FusarForConditionalGeneration, folder: Path, base: str | None = None) -> None:
    """The official adapter form (REFERENCE section 1); `peft_model` None where no LoRA was trained.

    `base`: the recipe's, which the adapter names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if peft_model is not None:
        if base is not None:
            peft_model.peft_config["default"].base_model_name_or_path = base
        # "auto" would ask the hub whether the vocabulary was resized.
        peft_model.save_pretrained(folder, save_embedding_layers=False)
    torch.save({"film_mlp": model.tlm.film_mlp.state_dict()}, folder / film.FILM)
    config = {
        "format": FORMAT,
        "sigma": model.tlm.sigma,
        "hidden_mult": model.tlm.hidden_mult,
        "image_size": model.config.fusar["image_size"],
        "vec_dim": VECTOR_SIZE,
    }
    (folder / film.CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_checkpoint(
    checkpoint: str | Path, recipe: ModelRecipe | None = None, *, sigma: float | None = None
) -> tuple[FusarForConditionalGeneration, Path, Manifest]:
    """(model in float32 and eval mode, path of its tokenizer.json, manifest) of any form that `open_weights` takes.

    The manifest that is returned for what has none says the stage `official` alone.
    """
    weights = checkpoint_weights(checkpoint, recipe, sigma=sigma)
    return model_from(weights), weights.tokenizer, weights.manifest or Manifest(stage=OFFICIAL)


def checkpoint_weights(
    checkpoint: str | Path, recipe: ModelRecipe | None = None, *, sigma: float | None = None
) -> Weights:
    """`open_weights` also without a recipe: then the folder's manifest says the base of an official form.

    CheckpointError for what has no manifest and so needs a recipe.
    """
    folder = Path(checkpoint)
    if recipe is not None:
        return open_weights(checkpoint, recipe, sigma=sigma)
    if str(checkpoint).startswith(PREFIX) or not (folder / FILENAME).is_file():
        _refuse_without_recipe(checkpoint)
    if is_official(folder):
        return open_weights(folder, recipe_of(folder), sigma=sigma)
    return own_weights(folder, None, sigma)


def model_from(weights: Weights) -> FusarForConditionalGeneration:
    """The whole model, in float32 and eval mode."""
    with no_init_weights():
        model = FusarForConditionalGeneration(weights.config)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.tensor(name))
    return model.eval()


def recipe_of(folder: Path) -> ModelRecipe:
    """That a folder of `fusar-edge train` was trained with."""
    manifest = read_manifest(folder, CheckpointError)
    try:
        return msgspec.toml.decode(manifest.recipe, type=ModelRecipe)
    except msgspec.MsgspecError as problem:
        raise CheckpointError(
            f"{folder / FILENAME} holds no recipe of a model ({problem}): give a folder that `fusar-edge train` wrote"
        ) from None


def _refuse_without_recipe(checkpoint: str | Path) -> NoReturn:
    if checkpoint == BASE:  # a Path is a folder
        raise CheckpointError(f"{BASE} is the published base of a recipe: give --recipe NAME, such as fusar-gpt-7b")
    if str(checkpoint).startswith(PREFIX) or is_official(Path(checkpoint)):
        raise CheckpointError(
            f"{checkpoint} is of the official form and has no {FILENAME}, so nothing says its base: give --recipe NAME "
            "(fusar-edge eval, anchors bake), or use fusar-edge export RECIPE --checkpoint, fusar-edge train RECIPE "
            "--init"
        )
    raise CheckpointError(
        f"{checkpoint} has no {FILENAME}: it is not a folder that `fusar-edge train` wrote, or it is incomplete"
    )

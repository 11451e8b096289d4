"""Published-looking bases and official adapters of very small width, for the tests of checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from small_model import SMALL_RECIPE, random_model
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.model.checkpoint import new_model
from fusar_edge.model.tlm import FORMAT
from fusar_edge.specs import ModelRecipe

HIDDEN, CHANNELS = 256, 64
TLM_CONFIG = {"format": FORMAT, "sigma": 2.0, "hidden_mult": 4, "image_size": 140, "vec_dim": 64}
LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def recipe_on(base: Path | str | None, image_size: int = 140) -> ModelRecipe:
    small = msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe)
    if base is None:
        return small
    return msgspec.structs.replace(small, base=str(base), image_size=image_size, vision=None, text=None, tokenizer=None)


def hub_name(name: str) -> str:
    """Names of the files on the hub, which are those of the modules before transformers 4.52."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def published(
    folder: Path,
    *,
    tied: bool = True,
    old: bool = True,
    shards: int = 1,
    dtype: Any = torch.float32,
    vocabulary: Path | None = None,
) -> Path:
    """A base with random weights as `from_pretrained` would find it; without `vocabulary` its tokenizer is none."""
    recipe = msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe)
    small = random_model(recipe) if vocabulary is None else new_model(recipe, vocabulary)
    config = small.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    state = {k: v.detach().clone() for k, v in small.state_dict().items() if not k.startswith("tlm.")}
    if tied:
        del state["lm_head.weight"]
    else:
        state["lm_head.weight"] = torch.randn(state["lm_head.weight"].shape, generator=torch.Generator().manual_seed(9))
    state = {hub_name(k) if old else k: v.to(dtype) for k, v in state.items()}
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        held = {key: names[i % shards] for i, key in enumerate(sorted(state))}
        for name in names:
            part = {key: state[key] for key in state if held[key] == name}
            save_file(part, folder / name, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": held}))
    said = config.to_dict()
    del said["fusar"]
    said["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text("{}" if vocabulary is None else vocabulary.read_text())
    return folder


def hugging_face(base: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()


def adapter_on(
    base: Path, folder: Path, *, old: bool = False, film: bool = True, legacy: bool = False, seed: int = 3, **lora: Any
) -> Path:
    """An adapter that PEFT itself made and saved, with random weights, and TLM beside it."""
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 16, "target_modules": list(LANGUAGE), "init_lora_weights": False} | lora
    model = get_peft_model(hugging_face(base), LoraConfig(**given))
    model.save_pretrained(folder, save_embedding_layers=False)
    if old:
        rewrite_lora(folder, lambda held: {_old_lora(k): v for k, v in held.items()})
    if film:
        torch.save({"film_mlp": random_film()}, folder / "vec64_film.pt")
        if not legacy:
            (folder / "tlm_config.json").write_text(json.dumps(TLM_CONFIG))
    return folder


def _old_lora(key: str) -> str:
    return "base_model.model." + hub_name(key.removeprefix("base_model.model."))


def random_film(channels: int = CHANNELS, hidden: int = HIDDEN) -> dict[str, Tensor]:
    shapes = {
        "0.weight": (hidden, 64),
        "0.bias": (hidden,),
        "2.weight": (2 * channels, hidden),
        "2.bias": (2 * channels,),
    }
    generator = torch.Generator().manual_seed(5)
    return {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def rewrite_lora(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def rewrite_film(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    torch.save({"film_mlp": change(random_film())}, folder / "vec64_film.pt")


def rewrite_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))

#!/usr/bin/env python3
"""A base as it would come from the hub, of the true architecture and with random weights, and an adapter for it.

    python tools/full_size/random_base.py base7b --like 7b --adapter adapter7b

What needs the size and not the knowledge is tried on it: reading, export, memory, time. bfloat16, shard by shard, the
hub's names; a shard that is there is kept, and each can be made alone, since a tensor depends on the seed and its name.
The vocabulary is `qwen.tiktoken` of PyPI's `dashscope`: downloaded with pip, or --ranks FILE (the file or the wheel).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from shapes import GENERATION, TOKENS, published_config
from tokenizers import AddedToken
from transformers import Qwen2_5_VLConfig

from fusar_edge.commands.console import bar
from fusar_edge.errors import InputError
from fusar_edge.model.film import FILM, TlmConfig, film_shapes
from fusar_edge.model.network import with_fusar
from fusar_edge.model.shards import INDEX
from fusar_edge.model.tokenizer import read_ranks, tokenizer_from_ranks
from fusar_edge.model.weights import HEAD, module_shapes, tied

Shapes = dict[str, tuple[int, ...]]

SHARD_BYTES = 2_000_000_000
STD = 0.02
CHUNK = 1 << 24
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION_LINEARS = ("qkv", "proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--like", choices=("7b", "3b", "small"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=Path, help="qwen.tiktoken, or the dashscope wheel that holds it")
    parser.add_argument("--adapter", type=Path, help="folder for a random adapter of the official form")
    parser.add_argument("--vision-lora", action="store_true", help="LoRA on the vision tower too")
    parser.add_argument("--legacy", action="store_true", help="an adapter without tlm_config.json")
    given = parser.parse_args()
    config = published_config(given.like)
    shapes = module_shapes(with_fusar(Qwen2_5_VLConfig(**config), 504, 2.0, 4))
    try:
        write_base(given.out, config, {k: v for k, v in shapes.items() if not k.startswith("tlm.")}, given)
        if given.adapter:
            write_adapter(given.adapter, shapes, given)
    except InputError as problem:
        sys.exit(f"random_base: {problem}")


def write_base(out: Path, config: dict[str, Any], shapes: Shapes, given: argparse.Namespace) -> None:
    if tied(Qwen2_5_VLConfig(**config)):
        shapes = {name: shape for name, shape in shapes.items() if name != HEAD}
    _claim(out, {"like": given.like, "seed": given.seed})
    plan = shard_plan(shapes)
    names = [f"model-{i:05d}-of-{len(plan):05d}.safetensors" for i in range(1, len(plan) + 1)]
    missing = [i for i, name in enumerate(names) if not (out / name).is_file()]
    _check_room(out, sum(_size(shapes[n]) for i in missing for n in plan[i]))
    with bar("writing") as step:
        done, total = 0, sum(map(_size, shapes.values()))
        for index, (file, members) in enumerate(zip(names, plan, strict=True)):
            if index in missing:
                tensors = {}
                for name in members:
                    step(done, total, file)
                    tensors[hub_name(name)] = random_tensor(name, shapes[name], given.seed)
                    done += _size(shapes[name])
                _put(out / file, lambda path, held=tensors: save_file(held, path, metadata={"format": "pt"}))
            else:
                done += sum(_size(shapes[n]) for n in members)
            step(done, total, file)
    listed = {hub_name(name): file for file, members in zip(names, plan, strict=True) for name in members}
    _put_json(out / "config.json", config)
    _put_json(out / "generation_config.json", GENERATION)
    if not (out / "tokenizer.json").is_file():
        _put(out / "tokenizer.json", lambda path: write_tokenizer(path, given.ranks))
    _put_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": listed})
    print(json.dumps({"out": str(out), "like": given.like, "shards": len(names), "bytes": total}))


def write_adapter(out: Path, shapes: Shapes, given: argparse.Namespace) -> None:
    """LoRA and TLM of the size that training gives them, so that neither is lost in rounding."""
    targets = [n for n in shapes if n.startswith("model.language_model.") and n.split(".")[-2] in LINEARS]
    if given.vision_lora:
        blocks = [n for n in shapes if n.startswith("model.visual.blocks.")]
        targets += [n for n in blocks if n.endswith(".weight") and n.split(".")[-2] in VISION_LINEARS]
    lora = {}
    for name in sorted(n for n in targets if n.endswith(".weight")):
        rows, columns = shapes[name]
        module = f"base_model.model.{name.removesuffix('.weight')}"
        for side, shape, std in (("A", (RANK, columns), columns**-0.5), ("B", (rows, RANK), STD / 4)):
            key = f"{module}.lora_{side}.weight"
            lora[key] = _normal(key, shape, given.seed).mul_(std)
    channels = published_config(given.like)["vision_config"]["out_hidden_size"]
    film = film_shapes(channels, 4)
    _check_room(out, 4 * sum(math.prod(s) for s in film.values()) + sum(4 * v.numel() for v in lora.values()))
    out.mkdir(parents=True, exist_ok=True)
    state = {
        k: _normal(f"film_mlp.{k}", s, given.seed).mul_(s[-1] ** -0.5 if len(s) > 1 else 0.05) for k, s in film.items()
    }
    _put(out / "adapter_model.safetensors", lambda path: save_file(lora, path, metadata={"format": "pt"}))
    _put(out / FILM, lambda path: torch.save({"film_mlp": state}, path))
    _put_json(out / "adapter_config.json", adapter_config(given.like, given.vision_lora))
    if not given.legacy:
        import msgspec

        _put_json(out / "tlm_config.json", msgspec.to_builtins(TlmConfig(sigma=2.0)))
    print(json.dumps({"adapter": str(out), "loras": len(lora) // 2, "legacy": given.legacy}))


def adapter_config(like: str, vision: bool) -> dict[str, Any]:
    language = rf".*language_model\..*\.({'|'.join(LINEARS)})"
    tower = rf".*visual\.blocks\..*\.({'|'.join(VISION_LINEARS)})"
    return {
        "base_model_name_or_path": f"Qwen/Qwen2.5-VL-{like.upper()}-Instruct",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": f"({language})|({tower})" if vision else language,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def shard_plan(shapes: Shapes) -> list[list[str]]:
    """Names by shard, in the order of the model; each shard at most SHARD_BYTES."""
    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if plan[-1] and filled + _size(shape) > SHARD_BYTES:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += _size(shape)
    return plan


def hub_name(name: str) -> str:
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """bfloat16. Norms are 1 and a little noise; a bias is small."""
    norm = "norm" in name or "ln_q" in name
    value = torch.empty(shape, dtype=torch.bfloat16)
    flat, source = value.view(-1), _source(name, seed)
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        noise = torch.from_numpy(source.standard_normal(part.numel(), dtype=np.float32))
        part.copy_(noise.mul_(STD).add_(1.0) if norm else noise.mul_(STD))
    return value


def _normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(_source(name, seed).standard_normal(shape, dtype=np.float32))


def _source(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def write_tokenizer(path: Path, ranks: Path | None) -> None:
    """The whole vocabulary, and every special token of Qwen2.5-VL at its id."""
    with tempfile.TemporaryDirectory() as work:
        if ranks is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "dashscope", "--dest", work]
            subprocess.run(command, check=True)
            ranks = next(Path(work).glob("dashscope-*.whl"))
        if zipfile.is_zipfile(ranks):
            with zipfile.ZipFile(ranks) as wheel:
                member = next(n for n in wheel.namelist() if n.endswith("qwen.tiktoken"))
                ranks = Path(wheel.extract(member, work))
        tokenizer = tokenizer_from_ranks(read_ranks(ranks), ())
    for token, special in TOKENS:
        added = AddedToken(token, normalized=False, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    tokenizer.save(str(path))


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """The folder is new, or of the same model and seed."""
    note = out / "random_base.json"
    if out.exists() and (not note.is_file() or json.loads(note.read_text()) != wanted):
        raise InputError(f"{out} holds something else than the random base {wanted}: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    _put_json(note, wanted)


def _check_room(out: Path, needed: int) -> None:
    at = next(p for p in (out, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(at).free
    if free < needed + (1 << 30):
        raise InputError(
            f"{out}: {needed / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free: give another disk"
        )


def _size(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _put(path: Path, write: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    write(part)
    part.replace(path)


def _put_json(path: Path, value: Any) -> None:
    _put(path, lambda part: part.write_text(json.dumps(value, indent=2) + "\n"))


if __name__ == "__main__":
    main()

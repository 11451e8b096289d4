"""Safetensors files of one folder, tensor by tensor, under the module names of transformers 4.57."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from fusar_edge.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    path: Path
    key: str
    """Its name in the file."""
    shape: tuple[int, ...]


class Shards:
    """Tensors by module name. No file stays open, and none is mapped between two calls."""

    def __init__(self, stored: dict[str, Stored], files: tuple[Path, ...]) -> None:
        self.stored, self.files = stored, files

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored[name].shape

    def tensor(self, name: str, start: int | None = None, stop: int | None = None) -> Tensor:
        """float32, contiguous, of its own memory; rows start..stop where they are given."""
        found = self.stored[name]
        try:
            with safe_open(found.path, framework="pt") as file:
                whole = start is None and stop is None
                value = file.get_tensor(found.key) if whole else file.get_slice(found.key)[start:stop]
                owned: Tensor = value.to(torch.float32, copy=True)
                return owned.contiguous()
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(f"{found.path}: {found.key} does not read: {problem}; copy the file again") from None


def module_name(stored: str) -> str:
    """Files of the hub and of `save_pretrained` keep the names of older modules: `visual.`, `model.layers.`."""
    for old, new in Qwen2_5_VLForConditionalGeneration._checkpoint_conversion_mapping.items():
        renamed, count = re.subn(old, new, stored)
        if count:
            return str(renamed)
    return stored


def is_finite(value: Tensor) -> bool:
    """No NaN, no infinity. A part at a time: isfinite takes twice the memory of what it looks at."""
    return all(bool(torch.isfinite(part).all()) for part in value.flatten().split(1 << 20))


def has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def open_shards(folder: Path) -> Shards:
    """`model.safetensors`, or the shards of its index. Reads headers alone."""
    if (folder / WEIGHTS).is_file():
        return shards_of([folder / WEIGHTS])
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}: weights are read from safetensors; copy the folder again"
        )
    try:
        listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted({folder / Path(name).name for name in listed.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as problem:
        raise CheckpointError(f"{index} is no index of safetensors ({problem!r}): copy it again") from None
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists: copy the folder again")
    shards = shards_of(files)
    for key, name in listed.items():
        found = shards.stored.get(module_name(key))
        if found is None or found.path.name != Path(name).name:
            raise CheckpointError(f"{folder / name} does not hold {key}, which {INDEX} lists: copy the folder again")
    return shards


def shards_of(files: Iterable[Path]) -> Shards:
    files = tuple(files)
    stored: dict[str, Stored] = {}
    for path in files:
        for found in _header(path):
            name = module_name(found.key)
            if name in stored:
                raise CheckpointError(
                    f"{path} holds {found.key}, and {stored[name].path} holds {stored[name].key}: one tensor twice; "
                    "keep the files of one checkpoint alone in the folder"
                )
            stored[name] = found
    return Shards(stored, files)


def _header(path: Path) -> list[Stored]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            for key, part in slices.items():
                if part.get_dtype() not in DTYPES:
                    raise CheckpointError(
                        f"{path}: {key} is {part.get_dtype()}; allowed are {', '.join(DTYPES)}: "
                        "give the checkpoint before it was quantised"
                    )
            return [Stored(path, key, tuple(part.get_shape())) for key, part in slices.items()]
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(f"{path} is no whole safetensors file: {problem}; copy it again") from None

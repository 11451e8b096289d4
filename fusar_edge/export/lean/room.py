"""Is there room on the disk? Asked before anything is written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from fusar_edge.errors import InputError
from fusar_edge.model.weights import Weights

GIB = 1 << 30
TEXT_TOKENS = 256
"""Of a sample, beside its image: what the values between two layers are counted for."""
SLACK = 64 << 20
SMALLEST_MATRIX = 16


def needed_bytes(weights: Weights, samples: int, keep: Collection[str] | None = None) -> int:
    """Of the finished folder and of the values between two layers, twice (the old are kept until the new are there).

    `keep`: patterns of the layers that stay in float in INT8 graphs; None: FP32 graphs.
    """
    int8 = keep is not None
    config = weights.config
    tied = config.text_config.tie_word_embeddings
    total = 0
    for name in weights.names:
        shape = weights.shape(name)
        count = math.prod(shape)
        if name.endswith("embed_tokens.weight"):
            total += count * (2 if int8 else 4)
        elif name == "lm_head.weight" and tied and not int8:
            continue
        elif int8 and len(shape) == 2 and min(shape) >= SMALLEST_MATRIX and not _kept(name, keep or ()):
            total += round(1.1 * count)
        else:
            total += 4 * count
    patches = (config.fusar["image_size"] // config.vision_config.patch_size) ** 2
    text = (patches // 4 + TEXT_TOKENS) * config.text_config.hidden_size
    per_sample = max(patches * config.vision_config.hidden_size, text)
    return total + 2 * 4 * per_sample * (2 * samples + 2) + SLACK


def _kept(name: str, keep: Collection[str]) -> bool:
    """By the layer's name in the graphs."""
    layer = (
        name.removesuffix(".weight").replace("model.visual.", "vision.").replace("model.language_model.", "decoder.")
    )
    layer = "decoder.lm_head" if layer == "lm_head" else layer
    return any(fnmatchcase(layer, pattern) for pattern in keep)


def check_room(
    root: Path, weights: Weights, samples: int, keep: Collection[str] | None = None, *, beside: int = 0
) -> None:
    """InputError with both figures. `root`: the unfinished folder; what it holds already is not needed again.

    `samples`, `keep`: as in `needed_bytes`. `beside`: bytes of an adapter's own file.
    """
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    needed, free = needed_bytes(weights, samples, keep) + beside - held, shutil.disk_usage(root).free
    if free < needed:
        raise InputError(
            f"{root.parent} has {free / GIB:.1f} GiB free, and the export needs {needed / GIB:.1f} GiB more: make "
            "room, or give an --out on another disk"
        )

"""A PEFT LoRA folder: read, checked against its base, and merged weight by weight."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fusar_edge.errors import CheckpointError
from fusar_edge.model.shards import Shards, is_finite, module_name, shards_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Settings that change neither which weights are merged nor how; the keys of the file say which ones it holds.
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size", "eva_config",
}  # fmt: skip
_HARMLESS_VALUES = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
"""Other starts of a LoRA (PiSSA, OLoRA, CorDA, LoftQ) change the base as well."""


@dataclass(frozen=True)
class _Pair:
    key: str
    """Its lora_A in the file."""
    a: str
    b: str
    scale: float


class Lora:
    """LoRA of a folder. Holds no tensor: each is read when it is asked for."""

    def __init__(self, pairs: dict[str, _Pair], shards: Shards) -> None:
        self._pairs, self._shards = pairs, shards

    @property
    def names(self) -> frozenset[str]:
        """Weights that it changes, as modules name them."""
        return frozenset(self._pairs)

    def add_to(self, weight: Tensor, name: str, start: int | None = None, stop: int | None = None) -> None:
        """weight[start:stop] += scale * B A, in place; nothing where the LoRA leaves the weight alone."""
        pair = self._pairs.get(name)
        if pair is not None:
            b, a = self._shards.tensor(pair.b, start, stop), self._shards.tensor(pair.a)
            weight.view(len(weight), -1).addmm_(b.flatten(1), a.flatten(1), alpha=pair.scale)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """A [rank, in] and scale * B [out, rank] of a linear's weight; None where the LoRA leaves it alone."""
        pair = self._pairs.get(name)
        if pair is None:
            return None
        return self._shards.tensor(pair.a).flatten(1), self._shards.tensor(pair.b).flatten(1) * pair.scale


def open_lora(folder: Path, base: dict[str, tuple[int, ...]], base_name: str) -> Lora:
    """The LoRA of `folder`, which is to fit the weights `base` (module name -> shape) of `base_name`."""
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} has {CONFIG} and no {WEIGHTS}: a LoRA is read from safetensors")
    shards = shards_of([path])
    pairs: dict[str, _Pair] = {}
    for key in sorted(shards.stored):
        module, side = _split(path, key)
        a, b = f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"
        other = b if side == "A" else a
        if other not in shards:
            raise CheckpointError(f"{path} holds {key} and no {other}: copy the file again")
        if side == "B":
            continue
        name = module_name(f"{module}.weight")
        if name in pairs:
            raise CheckpointError(f"{path} holds {key} and {pairs[name].key}, which are of one module: keep one")
        _check_shapes(path, key, shards.shape(a), shards.shape(b), base.get(name), base_name, config)
        pairs[name] = _Pair(key, a, b, _scale(path, config, module, shards.shape(a)[0]))
    if not pairs:
        raise CheckpointError(f"{path} holds no LoRA")
    for key in sorted(shards.stored):
        if not is_finite(shards.tensor(key)):
            raise CheckpointError(f"{path}: {key} holds NaN or infinity: its training diverged")
    return Lora(pairs, shards)


def lora_modules(folder: Path) -> set[str]:
    """Modules that the folder's file holds a LoRA of."""
    path = folder / WEIGHTS
    return {module_name(_split(path, key)[0]) for key in shards_of([path]).stored}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        kind = config.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{path}: peft_type {kind!r}; allowed is 'LORA'")
        for key in ("r", "lora_alpha"):
            if not isinstance(config.get(key), int | float) or config[key] <= 0:
                raise CheckpointError(f"{path}: {key} {config.get(key)!r}; it is a number above 0")
        for key in ("rank_pattern", "alpha_pattern"):
            _check_patterns(path, key, config.get(key) or {})
    except (OSError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"{path} is no PEFT configuration: {problem}") from None
    for key, value in config.items():
        if value and key not in _HARMLESS and value not in _HARMLESS_VALUES.get(key, ()):
            raise CheckpointError(
                f"{path}: {key} = {json.dumps(value)} is not supported; allowed is plain LoRA (and "
                "`use_rslora`, `rank_pattern`, `alpha_pattern`): merge it with PEFT, and give the result as the "
                "recipe's `base`"
            )
    return config


def _check_patterns(path: Path, key: str, patterns: Any) -> None:
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {key} {json.dumps(patterns)}; allowed is {{PATTERN OF MODULES: NUMBER, ...}}")
    for pattern, value in patterns.items():
        if not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{path}: {key} has {value!r} for {pattern!r}; it is a number above 0")
        try:
            re.compile(_whole_or_end(pattern))
        except (re.error, OverflowError, RecursionError) as problem:
            raise CheckpointError(f"{path}: {key} has {pattern!r}, which is no regular expression: {problem}") from None


def _split(path: Path, key: str) -> tuple[str, str]:
    match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", key)
    if match is None:
        raise CheckpointError(
            f"{path} holds {key}; allowed are {_PREFIX}MODULE.lora_A.weight and {_PREFIX}MODULE.lora_B.weight"
        )
    return match[1], match[2]


def _check_shapes(
    path: Path,
    key: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    weight: tuple[int, ...] | None,
    base_name: str,
    config: dict[str, Any],
) -> None:
    trained = config.get("base_model_name_or_path") or "another base"
    if weight is None:
        raise CheckpointError(
            f"{path}: {key} names no module of {base_name}: the adapter was trained on {trained}; "
            "give the recipe of its base"
        )
    if len(weight) < 2:
        raise CheckpointError(f"{path}: {key} is on a weight {list(weight)}; linears and convolutions are supported")
    ones = (1,) * (len(b) - 2)  # of a convolution's lora_B
    if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or b[2:] != ones:
        raise CheckpointError(f"{path}: {key} is {list(a)} and its lora_B {list(b)}: they are not of one rank")
    if (b[0], *a[1:]) != weight:
        raise CheckpointError(
            f"{path}: {key} makes a weight {[b[0], *a[1:]]}, {base_name} has {list(weight)}: the adapter was trained "
            f"on {trained}; give the recipe of its base"
        )


def _scale(path: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) (rsLoRA), by the patterns that name the module."""
    wanted = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if rank != wanted:
        raise CheckpointError(f"{path}: the LoRA of {module} has rank {rank}, {CONFIG} says {wanted}: copy both again")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """As PEFT matches: the whole module name, or its end after a dot; under its old name and under its new one."""
    for pattern, value in (patterns or {}).items():
        if any(re.match(_whole_or_end(pattern), name) for name in (module_name(module), module)):
            return value
    return default


def _whole_or_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"

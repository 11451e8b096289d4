"""The branch of a task adapter: its place in decoder.onnx, and the files adapters/NAME.data, NAME.json, folds.npz."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig

from fusar_edge.errors import CheckpointError, InputError
from fusar_edge.export.baking.basis import tlm_sha256
from fusar_edge.manifest import sha256_file
from fusar_edge.model.adapted import LINEARS, AdaptedLinear, Branch, vision_lora_sha256, weight_names
from fusar_edge.model.adapter import CONFIG as LORA_CONFIG
from fusar_edge.model.checkpoint import OFFICIAL
from fusar_edge.runtime.adapters import FOLDS, AdapterRecord, Placed, data_name, write_record

PAGE, LARGE, GRID = 4096, 1 << 20, 64
"""A tensor from LARGE bytes begins at a page of memory, any other at a multiple of GRID."""
INPUT, OUTPUT = ".input", ".output"
"""Ends of the keys in folds.npz, behind the name of a linear."""
SCALE = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")

Array = npt.NDArray[Any]


def layout(config: Qwen2_5_VLConfig, rank: int) -> dict[str, Placed]:
    """Where each constant of the branches lies; decided by the base and the rank alone."""
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    channels, inner = text.hidden_size, text.intermediate_size
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    sizes = dict(
        zip(
            LINEARS,
            (
                *((channels, queries), (channels, keys), (channels, keys), (queries, channels)),
                *((channels, inner), (channels, inner), (inner, channels)),
            ),
            strict=True,
        )
    )
    found: dict[str, Placed] = {}
    end = 0
    for index, part in itertools.product(range(text.num_hidden_layers), LINEARS):
        columns, rows = sizes[part]
        for side, shape in (("adapter_a", (columns, rank)), ("adapter_b", (rank, rows))):
            size = 4 * shape[0] * shape[1]
            grid = PAGE if size >= LARGE else GRID
            placed = Placed(shape, -(-end // grid) * grid)
            found[f"decoder.layers.{index}.{part}.{side}.weight"] = placed
            end = placed.end
    return found


def branch_tensors(linears: Iterable[tuple[str, AdaptedLinear]]) -> Iterator[tuple[str, Array]]:
    """(constant, value as it stands in the graph) of adapted linears, by their names in the graph."""
    for name, linear in linears:
        for side, module in (("adapter_a", linear.adapter_a), ("adapter_b", linear.adapter_b)):
            yield f"{name}.{side}.weight", module.weight.detach().T.numpy()


def write_data(path: Path, places: Mapping[str, Placed], tensors: Iterable[tuple[str, Array]]) -> None:
    """Every tensor of the layout, each at its place; gaps are zeros."""
    path.parent.mkdir(exist_ok=True)
    written = set()
    with open(path, "wb") as file:
        file.truncate(max(placed.end for placed in places.values()))
        for name, value in tensors:
            assert value.shape == places[name].shape, f"{name} is {value.shape}, the layout says {places[name].shape}"
            file.seek(places[name].offset)
            file.write(np.ascontiguousarray(value, "<f4").tobytes())
            written.add(name)
    assert written == set(places), f"{sorted(set(places) - written)[:3]} were not written"


def record_of(branch: Branch, places: dict[str, Placed], hashes: Mapping[str, str], recipe: str) -> AdapterRecord:
    """NAME.json. `hashes`: of `branch.weights`; `recipe`: text of the model recipe."""
    weights = branch.weights
    assert weights.adapter is not None
    said = json.loads((weights.adapter / LORA_CONFIG).read_text())
    changed = [name for name in weight_names(weights.config) if name in weights.lora_names]
    ranks = [len(found[0]) for name in changed if (found := weights.factors(name)) is not None]
    parts = {name.removesuffix(".weight").rpartition(".")[2] for name in changed}
    return AdapterRecord(
        name=branch.name,
        stage=weights.manifest.stage if weights.manifest else OFFICIAL,
        rank=max(ranks),
        scale={key: said[key] for key in SCALE if said.get(key)},
        targets=tuple(part.rpartition(".")[2] for part in LINEARS if part.rpartition(".")[2] in parts),
        sources={name: value for name, value in hashes.items() if name.startswith("adapter/")},
        base={name: value for name, value in hashes.items() if name.startswith("base/")},
        tlm_sha256=tlm_sha256(weights.tlm_state()),
        vision_sha256=vision_lora_sha256(weights),
        recipe=recipe,
        tensors=places,
    )


def write_adapter(
    folder: Path, branch: Branch, linears: Iterable[tuple[str, AdaptedLinear]], hashes: Mapping[str, str], recipe: str
) -> None:
    """adapters/ of an export: data, record and, where anything was folded, the factors."""
    linears = list(linears)
    places = layout(branch.weights.config, branch.rank)
    write_data(folder / data_name(branch.name), places, branch_tensors(linears))
    write_record(folder, record_of(branch, places, hashes, recipe))
    save_folds(folder, folds_of(linears))


def folds_of(linears: Iterable[tuple[str, AdaptedLinear]]) -> dict[str, Array]:
    """SmoothQuant's factors at each linear, of those that it touched."""
    found = {}
    for name, linear in linears:
        for end, factors in ((INPUT, linear.input_factors), (OUTPUT, linear.output_factors)):
            if factors is not None:
                found[name + end] = factors.detach().numpy().astype(np.float32)
    return found


def save_folds(folder: Path, folds: Mapping[str, Array]) -> None:
    """Nothing where there are none."""
    if folds:
        np.savez(folder / FOLDS, allow_pickle=False, **folds)


def read_folds(folder: Path) -> dict[str, Array]:
    if not (folder / FOLDS).is_file():
        return {}
    with np.load(folder / FOLDS) as stored:
        return dict(stored)


def folded_branch(branch: Branch, folds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """(constant, value) of an adapter beside weights that SmoothQuant has folded; one linear at a time."""
    for index, part in itertools.product(range(branch.weights.config.text_config.num_hidden_layers), LINEARS):
        name = f"decoder.layers.{index}.{part}"
        a, b = branch.factors(index, part)
        if name + INPUT in folds:
            a *= torch.from_numpy(folds[name + INPUT])
        if name + OUTPUT in folds:
            b /= torch.from_numpy(folds[name + OUTPUT])[:, None]
        yield f"{name}.adapter_a.weight", a.T.numpy()
        yield f"{name}.adapter_b.weight", b.T.numpy()


@contextmanager
def told_apart(module: nn.Module) -> Iterator[None]:
    """While a graph is traced no two branches hold equal numbers, such as zeros, which the exporter would share."""
    held: list[tuple[nn.Linear, Tensor]] = []
    number = itertools.count(1)
    for linear in [m for m in module.modules() if isinstance(m, AdaptedLinear)]:
        for side in (linear.adapter_a, linear.adapter_b):
            held.append((side, side.weight.data))
            side.weight.data = torch.full_like(side.weight.data, 1e-3 * next(number))
    try:
        yield
    finally:
        for side, value in held:
            side.weight.data = value


def check_same_base(record: AdapterRecord, branch: Branch, hashes: Mapping[str, str], where: Path) -> None:
    """CheckpointError where an adapter was not made for the base, the TLM or the tower of a bundle.

    `record`: the bundle's own; `hashes`: of the new adapter's weights.
    """
    name, folder = branch.name, branch.weights.adapter
    base = {key: value for key, value in hashes.items() if key.startswith("base/")}
    for file in sorted(record.base.keys() | base.keys()):
        if record.base.get(file) != base.get(file):
            raise CheckpointError(
                f"adapter {name}: {file.removeprefix('base/')} of its base is not that of {where}: an adapter answers "
                "on the base that it was trained on; give one of the same base"
            )
    if tlm_sha256(branch.weights.tlm_state()) != record.tlm_sha256:
        raise CheckpointError(
            f"adapter {name}: {folder} has another TLM (vec64_film.pt) than {where}, whose vision.onnx holds it: give "
            "an adapter whose stage 2 began with the same stage 1, or export it to a bundle of its own"
        )
    if vision_lora_sha256(branch.weights) != record.vision_sha256:
        raise CheckpointError(
            f"adapter {name}: {folder} has another LoRA of the vision tower than {where}, whose vision.onnx has its "
            "own merged: give an adapter with the same one, or export it to a bundle of its own"
        )


def check_tokenizer(tokenizer: Path, sha256: str | None, name: str, where: Path) -> None:
    if sha256_file(tokenizer) != sha256:
        raise CheckpointError(
            f"adapter {name}: {tokenizer} is not the tokenizer of {where}: give an adapter of the same tokenizer"
        )


def check_layout(record: AdapterRecord, places: Mapping[str, Placed], name: str, where: Path) -> None:
    """InputError where the branches of a bundle are of other shapes than those of an adapter."""
    for key in sorted(record.tensors.keys() | places.keys()):
        a, b = record.tensors.get(key), places.get(key)
        if a != b:
            have, need = (list(p.shape) if p else "none" for p in (b, a))
            raise InputError(f"adapter {name}: {key} is {have}, in {where} it is {need}: give an adapter of its base")

"""`fusar-edge bundle adapters add`: a checkpoint's LoRA -> adapters/NAME.data of a bundle that has branches for one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from fusar_edge.errors import BundleError, CheckpointError, InputError, OutputExistsError
from fusar_edge.export.adapters import (
    check_layout,
    check_same_base,
    check_tokenizer,
    folded_branch,
    layout,
    read_folds,
    record_of,
    write_data,
)
from fusar_edge.manifest import verify_files
from fusar_edge.model.adapted import branch_of
from fusar_edge.model.hub import base_folder
from fusar_edge.model.weights import open_weights
from fusar_edge.runtime.adapters import (
    AdapterRecord,
    changeable,
    changing,
    check_name,
    names_in,
    put_adapter,
    read_record,
)
from fusar_edge.runtime.bundle import ADAPTERS, TOKENIZER
from fusar_edge.specs import ModelRecipe

Progress = Callable[[int, int, str], None]


def add_adapter(
    bundle: str | Path,
    name: str,
    checkpoint: str | Path,
    *,
    base: str | Path | None = None,
    sigma: float | None = None,
    progress: Progress | None = None,
) -> AdapterRecord:
    """Put the LoRA of a checkpoint of the official form into a bundle; it answers when `use_adapter` says so.

    CheckpointError or InputError, and the bundle as it was, for an adapter that was made for another base, tokenizer,
    TLM or vision LoRA, or whose rank is larger than that of the branches. `base`: folder of the bundle's base, where it
    is elsewhere than its recipe says; its hashes are compared all the same. `progress` counts bytes that are hashed.
    """
    check_name(name)
    with changing(bundle) as (folder, manifest, settings):
        facts = changeable(folder, settings)
        if name in names_in(manifest):
            raise OutputExistsError(
                f"{folder} has an adapter {name} already: give another name, or take it out first: fusar-edge bundle "
                f"adapters remove {folder} {name}"
            )
        verify_files(folder, manifest, BundleError)
        own = read_record(folder, facts.exported)
        weights = open_weights(checkpoint, _with_base(_recipe(own, folder), base), sigma=sigma)
        branch = branch_of(name, weights, own.branch_rank)
        check_layout(own, layout(weights.config, own.branch_rank), name, folder)
        check_tokenizer(weights.tokenizer, manifest.files.get(TOKENIZER), name, folder)
        hashes = weights.hashes(progress)
        check_same_base(own, branch, hashes, folder)
        record = record_of(branch, own.tensors, hashes, own.recipe)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder / ADAPTERS) as scratch:
            data = Path(scratch) / f"{name}.{os.getpid()}"
            write_data(data, own.tensors, folded_branch(branch, read_folds(folder)))
            put_adapter(folder, manifest, record, data)
    return record


def _recipe(own: AdapterRecord, folder: Path) -> ModelRecipe:
    try:
        return msgspec.toml.decode(own.recipe, type=ModelRecipe)
    except msgspec.MsgspecError as problem:
        raise InputError(
            f"{folder}: the recipe in {own.name}.json: {problem}; add with the fusar-edge that built the bundle"
        ) from None


def _with_base(recipe: ModelRecipe, base: str | Path | None) -> ModelRecipe:
    """The recipe with its base as a folder of this machine. CheckpointError that names --base where there is none."""
    if base is not None and not Path(base).is_dir():
        raise CheckpointError(f"--base {base} is no folder: give the folder of the base that the bundle was made on")
    try:
        found = Path(base) if base is not None else base_folder(recipe)
    except CheckpointError as problem:
        raise CheckpointError(f"{problem}; here: --base FOLDER, the folder of that base on this machine") from None
    return msgspec.structs.replace(recipe, base=str(found))

"""A base of very small width, adapters on it, and bundles that keep them beside the weights; made once."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tiny_graphs
import torch
from official_files import LANGUAGE, adapter_on, published
from safetensors.torch import load_file, save_file

from fusar_edge.calib.run import calibrate
from fusar_edge.engines.build import build
from fusar_edge.export.run import export_model
from fusar_edge.recipes import shelf_folder

TOKENIZER = shelf_folder("export") / "fusar-tiny" / "tokenizer.json"
SPEC = """
name = "test"
engine = "onnxruntime"
status = "untested"
memory_mib = 512
threads = 1
cache_tokens = 256
"""
CALIB = tiny_graphs.RECIPE.replace(
    "[keep]", '[smooth]\nlinears = ["decoder.layers.*"]\nrows = 128\nalphas = [0.6]\n[keep]'
)
CALIB = CALIB.replace('"percentile"\npercentile = 99.99', '"max"')
WAIVER = "random weights"
FIRST: dict[str, Any] = {"r": 20, "lora_alpha": 10}
"""Of the adapter that is exported: a rank at which qdq would take a branch for a layer."""
SECOND: dict[str, Any] = {"r": 4, "lora_alpha": 4, "parts": ("q_proj", "v_proj", "down_proj"), "seed": 8}

_FOLDER = tempfile.TemporaryDirectory(prefix="fusar-edge-adapters-")
ROOT = Path(_FOLDER.name)


@functools.cache
def recipe_file() -> Path:
    base = published(ROOT / "base", vocabulary=TOKENIZER)
    generator = torch.Generator().manual_seed(2)
    state = load_file(base / "model.safetensors")  # biases of 0 and norms of 1 are equal: the exporter would share them
    state = {k: v if v.dim() > 1 else v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    path = ROOT / "small.toml"
    path.write_text(
        f'name = "small"\nbase = "{base}"\nimage_size = 140\nanchor_nodes = 5\n'
        "[train.stage1]\nepochs = 1\nlr = 1e-4\n[train.stage2]\nepochs = 1\nlr = 1e-4\n"
    )
    return path


@functools.cache
def calib_file(smooth: bool) -> Path:
    path = ROOT / ("smooth.toml" if smooth else "plain.toml")
    path.write_text(CALIB if smooth else tiny_graphs.RECIPE)
    return path


def adapter(folder: Path, *, seed: int = 3, parts: tuple[str, ...] = LANGUAGE, **lora: Any) -> Path:
    """Of the official form, on the base; on the language model alone unless `target_modules` says otherwise."""
    recipe_file()
    language = {"target_modules": rf".*language_model.*\.({'|'.join(parts)})"}
    return adapter_on(ROOT / "base", folder, seed=seed, **(language | lora))


@functools.cache
def first() -> Path:
    return adapter(ROOT / "first", **FIRST)


@functools.cache
def second() -> Path:
    return adapter(ROOT / "second", **SECOND)


def fp32(checkpoint: str, name: str | None, smooth: bool = False, rank: int | None = None) -> Path:
    """Exported; `name` None: merged. `checkpoint`: first or second."""
    out = ROOT / f"fp32-{checkpoint}-{name}-{smooth}-{rank}"
    if out.exists():
        return out
    given: dict[str, Any] = {"smooth": str(calib_file(True)), "data": [tiny_graphs.tiles()]} if smooth else {}
    source = {"first": first, "second": second}[checkpoint]()
    export_model(str(recipe_file()), source, out, adapter=name, adapter_rank=rank, **given)
    return out


def int8(checkpoint: str, name: str | None, smooth: bool = False) -> Path:
    out = ROOT / f"int8-{checkpoint}-{name}-{smooth}"
    if out.exists():
        return out
    calibrate(str(calib_file(smooth)), fp32(checkpoint, name, smooth), [tiny_graphs.tiles()], out)
    return out


@functools.cache
def _spec() -> Path:
    path = ROOT / "spec.toml"
    path.write_text(SPEC)
    return path


def built(graphs: Path) -> Path:
    """`graphs` of a name of their own."""
    out = ROOT / f"bundle-{graphs.name}"
    if not out.exists():
        build(str(_spec()), graphs, out, waive=None if graphs.name.startswith("fp32") else WAIVER)
    return out


def bundle(graphs: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built(graphs), folder))

"""What baking saves and costs at the width of FUSAR-GPT 7B: `pytest -m slow tests/bench/test_bench_bake.py -s`.

The MLP has random weights (64 -> 14336 -> 7168), the anchors are real AlphaEarth vectors.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusar_edge.anchors.building.build import build_table
from fusar_edge.anchors.grid import grid_positions
from fusar_edge.anchors.table import AnchorTable
from fusar_edge.export.baking.basis import fit_directions, projector_from
from fusar_edge.export.baking.error import errors_by_rank, measured_error
from fusar_edge.export.baking.places import Places, read_places
from fusar_edge.model.tlm import BakedModulation, TokenModulation

pytestmark = pytest.mark.slow

CHANNELS, CELLS, NODES = 3584, 18, 18
RANKS = (8, 16, 32, 64, 128)
INPUTS = ("tokens", "anchors", "anchor_positions", "anchor_mask")


@functools.cache
def random_tlm(first_layer: float = 1.0) -> TokenModulation:
    """Torch's own start; the first layer's weights times `first_layer`."""
    torch.manual_seed(0)
    tlm = TokenModulation(CHANNELS, 2 * CELLS, CELLS)
    with torch.no_grad():
        next(tlm.film_mlp.parameters()).mul_(first_layer)
    return tlm.eval()


@functools.cache
def real_places(folder: Path, count: int = 4000) -> dict[str, Places]:
    """One square kilometre at 10 m, and points all over three regions of California and Iowa."""
    sources = {
        "wisconsin": ([folder / "aef/aef_wisconsin_2024_16N_10m_int8.tif"], 10),
        "samples": (sorted((folder / "aef").glob("*.csv")), 10),
    }
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name, (files, spacing_m) in sources.items():
            build_table(files, Path(work) / name, years=[2024], spacing_m=spacing_m, jobs=1)
            found[name] = read_places(AnchorTable.open(Path(work) / name), count)
    return found


@pytest.mark.parametrize("first_layer", [1.0, 30.0], ids=["torch's start", "clearly nonlinear"])
@pytest.mark.parametrize("name", ["wisconsin", "samples"])
def test_bench_error_by_rank(real_data: Path, name: str, first_layer: float) -> None:
    mlp, places = random_tlm(first_layer).film_mlp, real_places(real_data)[name]
    fit = fit_directions(mlp, places.fit, np.ones(2 * CHANNELS, np.float32), max(RANKS) // 2)
    errors = errors_by_rank(fit, mlp, places.held_out)
    table = {rank: round(float(errors[rank - 1]), 4) for rank in RANKS}
    print(f"\n{name}, first layer x {first_layer}: {len(places.fit)} fit, {len(places.held_out)} held out: {table}")
    basis = fit.basis(32)
    measured = measured_error(mlp, basis, projector_from(mlp, basis), places.held_out)
    print(measured)
    assert measured["tokens"]["vs_constant"] == pytest.approx(errors[31], rel=0.05)
    assert (np.diff(errors[: min(RANKS)]) < 0).all()


def tlm_session(module: torch.nn.Module, bands: int, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    import onnxruntime

    rng = np.random.default_rng(0)
    values = {
        "tokens": rng.normal(size=(1, CELLS**2, CHANNELS)).astype(np.float32),
        "anchors": rng.uniform(-0.3, 0.3, (1, NODES**2, bands)).astype(np.float32),
        "anchor_positions": grid_positions(NODES)[None].copy(),
        "anchor_mask": np.ones((1, NODES**2), np.float32),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = tuple(torch.from_numpy(value) for value in values.values())
        torch.onnx.export(module, arguments, path, input_names=list(INPUTS), opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), values


@pytest.mark.parametrize("bands", [64, 16, 32, 128], ids=["mlp", "rank 16", "rank 32", "rank 128"])
def test_bench_tlm_of_one_tile(benchmark: Any, tmp_path: Path, bands: int) -> None:
    """MLP, spreading and modulation of [324, 3584] tokens by 324 anchors, FP32, 2 threads."""
    tlm = random_tlm()
    module: torch.nn.Module = tlm
    if bands != 64:
        module = BakedModulation(tlm, torch.zeros(2 * CHANNELS), torch.randn(bands, 2 * CHANNELS) / bands)
    session, values = tlm_session(module, bands, tmp_path / "tlm.onnx")
    benchmark.extra_info["bytes"] = (tmp_path / "tlm.onnx").stat().st_size
    benchmark.pedantic(session.run, (None, values), rounds=5 if bands == 64 else 20, warmup_rounds=1)
    print(f"\nbands {bands}: {benchmark.extra_info['bytes'] / 1e6:.1f} MB")

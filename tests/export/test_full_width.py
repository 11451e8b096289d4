"""Equality at the width of Qwen2.5-VL-7B: both graphs in PyTorch and ONNX Runtime against Hugging Face, TLM against
NumPy. What the slices are: full_width.py.

Slow (some 10 minutes on two cores, 6.6 GB): `pytest -m slow tests/export/test_full_width.py`; `-s` shows the figures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tlm_in_numpy
import torch
from full_width import (
    CELLS,
    CHANNELS,
    IMAGE_SIZE,
    PATCHES,
    Array,
    Measured,
    Slice,
    check_decoder,
    in_onnxruntime,
    new_slice,
    random_tlm,
    vision_with_tower,
)

from fusar_edge.export.parity import Gate, Run
from fusar_edge.export.speckle import speckled
from fusar_edge.model.tlm import TokenModulation
from fusar_edge.specs import ExportSpec

pytestmark = pytest.mark.slow

SPEC = ExportSpec(cosine=0.999999, norm_ratio=1e-5)
"""0.9999 and 1e-3 are what export asks; float32 keeps far closer, and a small mistake must not hide."""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "outliers"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slice]:
    folder = tmp_path_factory.mktemp("slice")
    yield new_slice(folder, outliers=request.param)
    shutil.rmtree(folder)  # 2.7 GB


@pytest.fixture(scope="module")
def in_ort(made: Slice) -> Measured:
    return in_onnxruntime(made)


@pytest.fixture(params=["PyTorch", "ONNX Runtime"])
def by(request: pytest.FixtureRequest, made: Slice) -> tuple[Measured, Gate]:
    """Each way to run the graphs, with a gate of its own."""
    found = made.in_torch if request.param == "PyTorch" else request.getfixturevalue("in_ort")
    return found, Gate(SPEC, f"{request.param} against Hugging Face")


def test_the_positions_around_an_image_of_18_by_18_cells_are_those_of_hugging_face(made: Slice) -> None:
    assert len(np.unique(made.reference.positions[1:, 0].T, axis=0)) > CELLS * CELLS
    np.testing.assert_array_equal(made.given.position_ids, made.reference.positions)


def test_the_visual_tokens_of_a_windowed_and_a_full_block_are_those_of_hugging_face(
    made: Slice, by: tuple[Measured, Gate]
) -> None:
    found, gate = by
    assert found.tokens.shape == (2, CELLS * CELLS, CHANNELS)
    gate.check("vision.visual_tokens", made.reference.tokens, found.tokens)
    print(gate.between, json.dumps(gate.figures))


@pytest.mark.parametrize("reuse", [False, True], ids=["prompt-at-once", "image-first"])
def test_logits_tokens_and_cache_of_prefill_and_single_steps_are_those_of_hugging_face(
    made: Slice, by: tuple[Measured, Gate], reuse: bool
) -> None:
    found, gate = by
    assert len(found.rolls[True]) == len(found.rolls[False]) + 1
    check_decoder(made.reference, made.given, found.rolls[reuse], gate)
    assert gate.figures["decoder.next_ids"] == {"agreement": 1.0}
    print(gate.between, json.dumps(gate.figures))


def test_planted_activations_are_a_thousand_times_the_median(made: Slice) -> None:
    """In the residual streams, behind norms and before `down_proj`; without planting at most some hundred times."""
    print(json.dumps(made.reference.peaks))
    assert (min(made.reference.peaks.values()) > 1000) == made.outliers
    assert (max(made.reference.peaks.values()) < 500) != made.outliers


# TLM ----------------------------------------------------------------------------------------------------------------

NODES = np.stack(np.meshgrid(*[np.linspace(0, 1, CELLS)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
"""324 anchors, (y, x): the outermost lie on the edges of the image."""
HALF = np.random.default_rng(5).permutation(len(NODES)) < len(NODES) // 2
EDGES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 0.5], [0.7, 1], [1, 0.1]])
PLACES = {
    "grid of 324": (NODES, np.ones(len(NODES))),
    "half masked, scattered": (NODES, HALF),
    "half masked, one side": (NODES, NODES[:, 1] < 0.5),
    # Far from every anchor the weights are of the size of the epsilons: where these stand can be seen only here.
    "few, on edges": (EDGES, np.array([1, 1, 1, 1, 1, 0, 1])),
    "one, in a corner": (EDGES[:1], np.ones(1)),
}
TOLERANCE = 1e-5
"""Of a token's norm."""


@pytest.fixture(scope="module")
def tlm() -> TokenModulation:
    """That of the slice."""
    found = random_tlm(TokenModulation(CHANNELS, PATCHES, CELLS).eval())
    assert found.film_mlp[0].weight.shape == (14336, 64)
    return found


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """vision.onnx with what enters TLM as `tower`."""
    folder = tmp_path_factory.mktemp("vision")
    yield vision_with_tower(folder / "vision.onnx")
    shutil.rmtree(folder)


def films(tlm: TokenModulation, anchors: Array) -> tuple[Array, Array]:
    linears = [(tlm.film_mlp[i].weight.detach().numpy(), tlm.film_mlp[i].bias.detach().numpy()) for i in (0, 2)]
    return tlm_in_numpy.films(anchors, *linears)


def unit_vectors(count: int) -> Array:
    vectors = np.random.default_rng(count).normal(size=(count, 64))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def inputs(name: str, masked: bool = False) -> dict[str, Array]:
    positions, mask = PLACES[name]
    return {
        "anchors": unit_vectors(len(positions))[None],
        "anchor_positions": positions[None].astype(np.float32),
        "anchor_mask": mask[None].astype(np.float32) * (not masked),
    }


def check_modulated(name: str, tlm: TokenModulation, tokens: Array, found: Array, between: str) -> None:
    """tokens and found [T, C]."""
    given = {key: value[0] for key, value in inputs(name).items()}
    wanted = tlm_in_numpy.modulated(
        tokens, films(tlm, given["anchors"]), given["anchor_positions"], given["anchor_mask"], PATCHES
    )
    assert np.linalg.norm(wanted - tokens) > 0.1 * np.linalg.norm(tokens)
    gate = Gate(SPEC, between)
    gate.check("visual_tokens", wanted, found)
    worst = (np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)).max()
    print(name, between, json.dumps(gate.figures), f"worst token {worst:.1e}")
    assert worst < TOLERANCE


@pytest.mark.parametrize("name", PLACES)
def test_tlm_at_width_3584_says_what_the_formula_says(name: str, tlm: TokenModulation) -> None:
    tokens = np.random.default_rng(0).standard_normal((1, CELLS * CELLS, CHANNELS), np.float32)
    given = [torch.from_numpy(value) for value in (tokens, *inputs(name).values())]
    with torch.no_grad():
        found = tlm(*given).numpy()
    check_modulated(name, tlm, tokens[0], found[0], "PyTorch against NumPy")


@pytest.mark.parametrize("name", PLACES)
def test_tlm_in_the_vision_graph_at_width_3584_says_what_the_formula_says(
    name: str, tlm: TokenModulation, vision: Run
) -> None:
    pixels = speckled(np.random.default_rng(2), 1, IMAGE_SIZE)
    found = vision({"pixels": pixels} | inputs(name))
    check_modulated(name, tlm, found["tower"][0], found["visual_tokens"][0], "ONNX Runtime against NumPy")


@pytest.mark.parametrize("name", PLACES)
def test_with_every_anchor_masked_the_tokens_at_width_3584_are_the_plain_ones_bit_for_bit(
    name: str, tlm: TokenModulation, vision: Run
) -> None:
    masked = inputs(name, masked=True)
    found = vision({"pixels": speckled(np.random.default_rng(2), 1, IMAGE_SIZE)} | masked)
    np.testing.assert_array_equal(found["visual_tokens"], found["tower"])
    with torch.no_grad():
        again = tlm(torch.from_numpy(found["tower"]), *(torch.from_numpy(value) for value in masked.values()))
    np.testing.assert_array_equal(again.numpy(), found["tower"])

"""SmoothQuant: the function stays, INT8 gets better, and planted outliers are found."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_graphs
import torch
from small_model import SMALL_RECIPE, random_model

from fusar_edge.calib.compare import cosine
from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.calib.smoothquant.planted import CHANNELS, FACTOR, plant
from fusar_edge.calib.smoothquant.seams import fold, seams
from fusar_edge.calib.smoothquant.smooth import Smoothed, product_error, smooth
from fusar_edge.data.triplets import read_triplets
from fusar_edge.errors import DataError, RecipeError
from fusar_edge.export.parity import check_fold, sample
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.specs import ExportSpec, ModelRecipe, RangeSpec, SmoothSpec

ALL = SmoothSpec(linears=("*",), rows=256)
MAX = RangeSpec(method="max")


def small() -> FusarForConditionalGeneration:
    """Windows of three sizes, grouped heads, and a window that is not whole."""
    return random_model(msgspec.toml.decode(SMALL_RECIPE, type=ModelRecipe))


def graph_folder() -> GraphFolder:
    return open_graphs(tiny_graphs.fp32_folder())


@cache
def smoothed_tiny(planted: bool) -> tuple[FusarForConditionalGeneration, dict[str, Smoothed]]:
    model = tiny_graphs.random_model()
    if planted:
        plant(model)
    report = smooth(model, graph_folder(), read_triplets(tiny_graphs.tiles()), ALL, MAX)
    return model, report


def test_every_seam_is_there_and_any_factors_leave_the_model_as_it_is() -> None:
    model = small()
    generator = torch.Generator().manual_seed(0)

    def fold_all() -> None:
        for seam in seams(model):
            fold(seam, torch.exp(torch.randn(seam.factors, generator=generator)))

    names = [name for seam in seams(model) for name in seam.readers]
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(names) == len(set(names)) == len(linears) - 3  # merger.mlp.2 and both of TLM are behind a nonlinearity
    from fusar_edge.calib.smoothquant.seams import untie_head

    untie_head(model)
    figures = check_fold(model, fold_all, ExportSpec(cosine=0.999999, norm_ratio=1e-4))
    assert figures["decoder.logits"]["max_abs"] < 1e-3


def test_a_wrong_fold_is_noticed() -> None:
    from fusar_edge.errors import GateError

    model = small()
    seam = next(s for s in seams(model) if s.name.endswith("o_proj"))
    with pytest.raises(GateError, match="folded against unfolded"):
        check_fold(model, lambda: seam.readers[seam.name].weight.data.mul_(3), ExportSpec())


def test_smoothing_leaves_the_function_and_unties_the_head_alone() -> None:
    before, (after, report) = tiny_graphs.random_model(), smoothed_tiny(planted=False)
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    given = sample(before, 1)
    pixels = torch.from_numpy(given.vision["pixels"])
    with torch.no_grad():
        visual = [m.visual_tokens(pixels).numpy() for m in (before, after)]
        ids, positions = (torch.from_numpy(x).long() for x in (given.input_ids, given.position_ids))
        logits = [m.answer(torch.from_numpy(visual[0]), ids, positions).logits.numpy() for m in (before, after)]
    assert cosine(*visual) > 0.999999
    assert cosine(*logits) > 0.999999
    assert {name.rpartition(".")[2] for name in report} == {
        "qkv", "proj", "gate_proj", "down_proj", "0", "q_proj", "o_proj", "lm_head"
    }  # fmt: skip
    assert all(s.error_after <= s.error_before for s in report.values())


def test_planted_outliers_are_taken_out() -> None:
    report = smoothed_tiny(planted=True)[1]
    assert FACTOR == 100
    assert CHANNELS == 0.005
    planted = {name: s for name, s in report.items() if not name.endswith("proj") or name.endswith("gate_proj")}
    assert min(s.error_before / s.error_after for s in planted.values()) > 20
    plain = smoothed_tiny(planted=False)[1]
    for name, s in report.items():  # as good as a model without any
        assert s.error_after < 3 * plain[name].error_after, name


def test_the_error_of_a_product_is_that_of_fake_quantisation() -> None:
    generator = np.random.default_rng(0)
    x, weight = (generator.normal(size=s).astype(np.float32) for s in ((40, 24), (8, 24)))
    step, scale = np.abs(x).max() / 127, np.abs(weight).max(1, keepdims=True) / 127
    found = (np.rint(x / step) * step) @ (np.rint(weight / scale) * scale).T
    expected = np.square(found - x @ weight.T).sum() / np.square(x @ weight.T).sum()
    assert product_error(torch.from_numpy(x), [torch.from_numpy(weight)], MAX) == pytest.approx(expected, rel=1e-3)


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'vision\.merger\.mlp\.2' names no linear that can be smoothed; there are"):
        smooth(small(), graph_folder(), [], SmoothSpec(linears=("vision.merger.mlp.2",)), MAX)


def test_activations_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_graphs.random_model()
    with torch.no_grad():
        model.model.visual.blocks[2].norm2.weight[3] = float("nan")
    with pytest.raises(DataError, match=r"vision\.blocks\.2\.mlp\.gate_proj is not finite"):
        smooth(model, graph_folder(), read_triplets(tiny_graphs.tiles())[:1], ALL, MAX)


def test_a_block_may_have_an_alpha_of_its_own() -> None:
    alphas = {s.alpha for s in smoothed_tiny(planted=True)[1].values()}
    assert len(alphas) > 1


def test_planting_leaves_the_function_and_makes_outliers(tmp_path: Path) -> None:
    model = tiny_graphs.random_model()
    whole = copy.deepcopy(model)
    figures = check_fold(model, lambda: plant(model), ExportSpec(cosine=0.99999))
    assert figures["decoder.logits"]["cosine"] > 0.99999
    ratio = model.model.visual.blocks[0].norm1.weight / whole.model.visual.blocks[0].norm1.weight
    ratio = ratio.detach()
    assert sorted({round(float(v)) for v in ratio}) == [1, 100]

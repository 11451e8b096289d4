"""The first layer at which two precisions part, on fusar-tiny with random weights."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import tiny_graphs
from onnx import numpy_helper
from rich.console import Console
from runtime.fake_tensorrt import FakeTensorrt, write_trt_bundle

from fusar_edge.calib.compare import cosine, norm_ratio
from fusar_edge.calib.divergence.layer_sums import LayerSums
from fusar_edge.calib.divergence.run import Divergence, LayerFigures, compare_precisions, table
from fusar_edge.calib.divergence.sides import open_side
from fusar_edge.calib.divergence.taps import LOGITS, TOKENS, plain_tensors
from fusar_edge.calib.graphs import open_graphs
from fusar_edge.calib.outliers import Split
from fusar_edge.calib.qdq import linears, quantised
from fusar_edge.calib.smoothquant.planted import plant
from fusar_edge.calib.tiles.samples import SampleReader, vision_tokens
from fusar_edge.data.triplets import Triplet, read_triplets
from fusar_edge.engines.fuse import fuse_decoder
from fusar_edge.errors import DataError, InputError
from fusar_edge.manifest import Manifest, read_manifest, write_manifest
from fusar_edge.model.checkpoint import new_model, save_model, tokenizer_path
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime import trt
from fusar_edge.runtime.backend import open_backend
from fusar_edge.runtime.bundle import open_bundle, seal_bundle
from fusar_edge.runtime.device_numpy import NumpyDevice
from fusar_edge.runtime.trt_api import DeviceFacts
from fusar_edge.specs import ModelRecipe

Edit = Callable[[np.ndarray], np.ndarray]
CACHE = {f"decoder.layers.{layer}.cache.{kind}" for layer in range(6) for kind in ("key", "value")}


@functools.cache
def samples(count: int = 1) -> list[Triplet]:
    """The first of them has anchors."""
    found = read_triplets(tiny_graphs.tiles())
    return [found[k] for k in (1, 0, 3, 2)[:count]]


@functools.cache
def network_layers() -> set[str]:
    """Linears and norms of the FP32 graphs, and the embedding."""
    models = [onnx.load(tiny_graphs.fp32_folder() / f"{name}.onnx") for name in ("vision", "decoder")]
    norms = {node.name.rpartition("/")[0] for model in models for node in model.graph.node if node.op_type == "Sqrt"}
    return {layer.name for model in models for layer in linears(model)} | norms | {"decoder.embed_tokens"}


def checkpoint(folder: Path, model: FusarForConditionalGeneration) -> Path:
    """As `train` writes it."""
    recipe, text = load_recipe("export", "fusar-tiny", ModelRecipe)
    folder.mkdir()
    save_model(model, tokenizer_path(recipe, "fusar-tiny"), folder)
    write_manifest(folder, Manifest(stage="stage2", recipe=text))
    return folder


@pytest.fixture(scope="module")
def in_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("torch") / "stage2", tiny_graphs.random_model())


def fused_bundle(source: Path, folder: Path) -> Path:
    graphs = open_graphs(source)
    shutil.copytree(source, folder)
    seal_bundle(folder, fuse_decoder(graphs, graphs.settings, folder))
    return folder


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> bundle with a fused decoder."""
    folder = tmp_path_factory.mktemp("fused")
    sources = {"fp32": tiny_graphs.fp32_folder(), "int8": tiny_graphs.int8_folder()}
    return {name: fused_bundle(source, folder / name) for name, source in sources.items()}


def changed(source: Path, folder: Path, edits: Mapping[str, Edit]) -> Path:
    """A copy of a folder of graphs in which some constants are others."""
    left = dict(edits)
    shutil.copytree(source, folder)
    for path in (folder / "vision.onnx", folder / "decoder.onnx"):
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name in left:
                value = left.pop(tensor.name)(numpy_helper.to_array(tensor).copy())
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(model, path)
    assert not left, f"no constant is named {[*left]}"
    return folder


def enlarged(value: np.ndarray) -> np.ndarray:
    return (value * 1.5).astype(value.dtype)


def one_nan(value: np.ndarray) -> np.ndarray:
    value.reshape(-1)[3] = np.nan
    return value


def names(found: Divergence) -> list[str]:
    return [layer.name for layer in found.layers]


def figures(found: Divergence, name: str) -> LayerFigures:
    return next(layer for layer in found.layers if layer.name == name)


def least_cosine(found: Divergence) -> float:
    return min(layer.cosine_least or 0.0 for layer in found.layers)


def test_pytorch_and_the_graphs_made_of_it_agree_in_every_layer(in_torch: Path) -> None:
    ticks: list[tuple[int, int]] = []
    found = compare_precisions(
        in_torch, tiny_graphs.fp32_folder(), samples(2), progress=lambda done, total: ticks.append((done, total))
    )
    assert set(names(found)) == network_layers() | CACHE | {TOKENS, LOGITS}
    assert found.unmatched == []
    assert found.first is found.not_finite is None
    assert least_cosine(found) > 1 - 1e-9
    assert all(abs((layer.norm_ratio or 0) - 1) < 1e-5 for layer in found.layers)
    assert ticks == [(1, 2), (2, 2)]


def test_pytorch_and_onnx_runtime_name_the_layers_in_one_order(in_torch: Path) -> None:
    reader = SampleReader(open_graphs(tiny_graphs.fp32_folder()))
    orders = []
    for folder in (in_torch, tiny_graphs.fp32_folder(), tiny_graphs.int8_folder()):
        side = open_side(folder)
        seen = side.see(reader.vision_feeds(samples()[0])[-1])
        orders.append([*seen, *side.step(reader.steps(samples()[0])[0], seen[TOKENS])])
    assert orders[0] == orders[1] == orders[2]
    places = [orders[0].index(f"decoder.layers.2.{part}") for part in ("self_attn.v_proj", "cache.key", "cache.value")]
    assert places == list(range(places[0], places[0] + 3))
    assert (orders[0][0], orders[0][-1]) == ("vision.patch_embed", LOGITS)


def test_int8_differs_from_fp32_in_every_linear_and_is_finite() -> None:
    found = compare_precisions(tiny_graphs.fp32_folder(), tiny_graphs.int8_folder(), samples(2))
    assert set(names(found)) == network_layers() | CACHE | {TOKENS, LOGITS}
    assert found.first is found.not_finite is None
    assert found.reason == f"all {len(found.layers)} layers: cosine 0.99 or more, norms within 5%"
    assert least_cosine(found) > 0.99
    assert all((layer.cosine or 0) < 1 - 1e-7 for layer in found.layers if layer.name.endswith("_proj"))


def test_the_least_cosine_is_that_of_the_worst_sample_alone() -> None:
    folders = tiny_graphs.fp32_folder(), tiny_graphs.int8_folder()
    both, *alone = (compare_precisions(*folders, chosen) for chosen in (samples(2), samples(2)[:1], samples(2)[1:]))
    for layer, *each in zip(both.layers, *(found.layers for found in alone), strict=True):
        cosines = [one.cosine or 0.0 for one in each]
        assert layer.cosine_least == pytest.approx(min(cosines), abs=1e-12)
        assert min(cosines) - 1e-12 <= (layer.cosine or 0.0) <= max(cosines) + 1e-12


@pytest.mark.parametrize(
    ("layer", "constant"),
    [
        ("vision.blocks.3.attn.qkv", "vision.blocks.3.attn.qkv.weight_axis1_scale"),
        ("vision.merger.mlp.2", "vision.merger.mlp.2.weight_axis1_scale"),
        ("tlm.film_mlp.0", "tlm.film_mlp.0.weight_axis1_scale"),
        ("decoder.layers.2.mlp.down_proj", "decoder.layers.2.mlp.down_proj.weight_axis1_scale"),
        ("decoder.lm_head", "decoder.embed_tokens.weight_axis0_scale"),
    ],
)
def test_the_layer_whose_weights_have_another_scale_is_the_first_named(
    tmp_path: Path, layer: str, constant: str
) -> None:
    broken = changed(tiny_graphs.int8_folder(), tmp_path / "broken", {constant: enlarged})
    found = compare_precisions(tiny_graphs.fp32_folder(), broken, samples())
    assert found.first is not None
    assert found.first.name == layer
    assert found.first.norm_ratio is not None
    assert 1.2 < found.first.norm_ratio < 1.6  # 1.5 but for the bias
    assert found.reason.startswith(f"{layer}: ")
    assert f"ratio of norms {found.first.norm_ratio:.6f} is farther from 1 than 0.05" in found.reason
    assert found.not_finite is None


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("layer", ["vision.blocks.2.norm2", "decoder.layers.1.input_layernorm"])
def test_a_nan_is_named_by_its_layer_and_side(tmp_path: Path, layer: str, side: str) -> None:
    whole = tiny_graphs.fp32_folder()
    broken = changed(whole, tmp_path / "broken", {f"{layer}.weight": one_nan})
    a, b = (broken, whole) if side == "A" else (whole, broken)
    found = compare_precisions(a, b, samples())
    first = found.first
    assert first is not None
    assert found.not_finite is first
    assert first.name == layer
    assert (first.nan_a > 0, first.nan_b > 0) == (side == "A", side == "B")
    assert (first.cosine, first.cosine_least, first.norm_ratio) == (None, None, None)
    count = first.nan_a + first.nan_b
    assert found.reason == f"{layer}: {count} values of {side} ({broken}) are NaN or infinite"


def test_a_nan_behind_a_layer_that_left_its_band_is_named_too(tmp_path: Path) -> None:
    edits = {"vision.blocks.1.attn.qkv.weight": enlarged, "decoder.norm.weight": one_nan}
    broken = changed(tiny_graphs.fp32_folder(), tmp_path / "broken", edits)
    found = compare_precisions(tiny_graphs.fp32_folder(), broken, samples())
    assert found.first is not None
    assert found.not_finite is not None
    assert (found.first.name, found.not_finite.name) == ("vision.blocks.1.attn.qkv", "decoder.norm")
    assert re.search(r"^vision\.blocks\.1\.attn\.qkv: .*ratio .*; decoder\.norm: \d+ values of B ", found.reason)


def test_a_layer_of_zeros_on_both_sides_is_no_divergence_and_on_one_side_is(tmp_path: Path) -> None:
    whole = tiny_graphs.fp32_folder()
    silent = {f"tlm.film_mlp.2.{part}": np.zeros_like for part in ("weight", "bias")}
    zeros = changed(whole, tmp_path / "zeros", silent)
    both = compare_precisions(zeros, zeros, samples())
    assert both.first is None
    layer = figures(both, "tlm.film_mlp.2")
    assert (layer.cosine, layer.norm_ratio) == (1, 1)
    for a, b, words in ((zeros, whole, "all zeros in A"), (whole, zeros, "cosine 0.000000")):
        found = compare_precisions(a, b, samples())
        assert found.reason.startswith(f"tlm.film_mlp.2: {words}")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_fused_decoder_is_compared_in_every_linear(fused: dict[str, Path], precision: str) -> None:
    found = compare_precisions(tiny_graphs.fp32_folder(), fused[precision], samples())
    assert set(names(found)) == network_layers() | CACHE | {TOKENS, LOGITS}
    assert (found.first, found.unmatched) == (None, [])
    gap = 1 - least_cosine(found)
    assert gap < 1e-9 if precision == "fp32" else 1e-5 < gap < 0.01


def test_a_part_of_a_fused_product_is_named_as_the_linear_it_stands_for(tmp_path: Path) -> None:
    graphs, scale = tiny_graphs.int8_folder(), "decoder.layers.2.self_attn.qkv_proj.scale"
    settings = open_graphs(graphs).settings
    keys = settings.kv_heads * settings.head_dim

    def keys_enlarged(value: np.ndarray) -> np.ndarray:
        rows = value.reshape(settings.channels + 2 * keys, -1)
        rows[-2 * keys : -keys] *= 1.5
        return value

    broken = changed(fused_bundle(graphs, tmp_path / "bundle"), tmp_path / "broken", {scale: keys_enlarged})
    manifest = read_manifest(broken)
    (broken / "manifest.json").unlink()
    seal_bundle(broken, msgspec.convert(manifest.settings, type(settings)))
    found = compare_precisions(graphs, broken, samples())
    assert found.first is not None
    assert found.first.name == "decoder.layers.2.self_attn.k_proj"


@pytest.mark.parametrize("kind", ["int8", "fused"])
def test_a_side_says_what_the_runtime_says_bit_for_bit(fused: dict[str, Path], kind: str) -> None:
    folder = tiny_graphs.int8_folder() if kind == "int8" else fused["int8"]
    bundle = open_graphs(folder).bundle() if kind == "int8" else open_bundle(folder)
    side, backend, reader = (
        open_side(folder),
        open_backend(bundle),
        SampleReader(open_graphs(tiny_graphs.int8_folder())),
    )
    feed = reader.vision_feeds(samples()[0])[-1]
    visual = vision_tokens(backend, feed)
    np.testing.assert_array_equal(side.see(feed)[TOKENS], visual)
    cache: Any = backend.new_cache(bundle.settings.context_tokens)
    for step in reader.steps(samples()[0]):
        logits = backend.step(cache, step.input_ids, visual, step.visual_index, step.position_ids).logits
        np.testing.assert_array_equal(side.step(step, visual)[LOGITS], logits)


def test_a_side_that_begins_anew_has_forgotten_its_past(fused: dict[str, Path]) -> None:
    reader = SampleReader(open_graphs(tiny_graphs.fp32_folder()))
    step = reader.steps(samples()[0])[0]
    visual = np.zeros((1, 81, 256), np.float32)
    for folder in (tiny_graphs.fp32_folder(), fused["fp32"]):
        side = open_side(folder)
        said = []
        for _ in range(2):
            side.begin()
            said.append(side.step(step, visual)[LOGITS])
            assert len(side.past()) == step.input_ids.shape[1]
        np.testing.assert_array_equal(said[0], said[1])


def test_isolated_a_broken_vision_leaves_the_decoder_alone(tmp_path: Path) -> None:
    edits = {"vision.merger.mlp.2.weight": enlarged}
    broken = changed(tiny_graphs.fp32_folder(), tmp_path / "broken", edits)
    for isolated in (False, True):
        found = compare_precisions(tiny_graphs.fp32_folder(), broken, samples(), isolated=isolated)
        decoder = [layer for layer in found.layers if layer.name.startswith("decoder.layers")]
        assert found.first is not None
        assert found.first.name == "vision.merger.mlp.2"
        assert (min(layer.cosine or 0 for layer in decoder) > 1 - 1e-9) == isolated


def test_isolated_what_the_cache_passes_on_is_the_references(tmp_path: Path) -> None:
    edits = {f"decoder.layers.5.self_attn.v_proj.{part}": enlarged for part in ("weight", "bias")}
    broken = changed(tiny_graphs.fp32_folder(), tmp_path / "broken", edits)
    ratios = []
    for isolated in (False, True):
        found = compare_precisions(tiny_graphs.fp32_folder(), broken, samples(), isolated=isolated)
        assert found.first is not None
        assert found.first.name == "decoder.layers.5.self_attn.v_proj"
        ratios.append(figures(found, "decoder.layers.5.self_attn.o_proj").norm_ratio or 0.0)
    assert ratios[0] == pytest.approx(1.5, abs=1e-5)
    assert ratios[1] < 1.499  # a step of one token sees its own value enlarged, and the cached ones as they are in A


@pytest.mark.parametrize("kind", ["graphs", "fused"])
def test_isolated_a_step_takes_the_past_of_the_reference(fused: dict[str, Path], kind: str) -> None:
    folder = tiny_graphs.fp32_folder() if kind == "graphs" else fused["fp32"]
    reader = SampleReader(open_graphs(tiny_graphs.fp32_folder()))
    first, second = reader.steps(samples()[0])[:2]
    visual = np.random.default_rng(0).normal(size=(1, 81, 256)).astype(np.float32)
    a, b = open_side(tiny_graphs.fp32_folder()), open_side(folder)
    a.step(first, visual)
    b.step(first, 0 * visual)  # has seen something else
    past = a.past()
    wanted = a.step(second, visual)
    for name, value in b.step(second, visual, past).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-4 * np.abs(wanted[name]).max(), err_msg=name)


@pytest.fixture
def fake_trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorrt]:
    """A TensorRT in which the plans are run by ONNX Runtime on the memory of the NumPy device."""
    made = FakeTensorrt(NumpyDevice())
    monkeypatch.setattr(trt, "open_tensorrt", lambda: made)
    monkeypatch.setattr(trt, "device_facts", lambda: DeviceFacts("Orin", "8.7", 64 << 30, 60 << 30, "13.2"))
    monkeypatch.setattr(trt, "open_device", lambda kind: made.device)
    yield made
    assert made.ended[-1] == "closed"


@pytest.mark.parametrize("isolated", [False, True])
def test_plans_are_compared_by_what_they_show(fake_trt: FakeTensorrt, tmp_path: Path, isolated: bool) -> None:
    graphs = open_graphs(tiny_graphs.int8_folder()).bundle()
    plans = write_trt_bundle(tmp_path / "plans", graphs, prefill_tokens=97).folder  # the prompt takes two runs
    found = compare_precisions(tiny_graphs.fp32_folder(), plans, samples(), isolated=isolated)
    assert names(found) == [
        TOKENS,
        *(f"decoder.layers.{k}.cache.{kind}" for k in range(6) for kind in ("key", "value")),
        LOGITS,
    ]
    assert set(found.unmatched) == network_layers()
    wanted = compare_precisions(tiny_graphs.fp32_folder(), tiny_graphs.int8_folder(), samples(), isolated=isolated)
    for layer in found.layers:
        assert layer.cosine == pytest.approx(figures(wanted, layer.name).cosine, abs=2e-5)


def test_plans_have_the_resolution_of_a_layer(fake_trt: FakeTensorrt, tmp_path: Path) -> None:
    constant = "decoder.layers.2.mlp.down_proj.weight"
    broken = changed(tiny_graphs.fp32_folder(), tmp_path / "graphs", {constant: lambda value: -value})
    plans = write_trt_bundle(tmp_path / "plans", open_graphs(broken).bundle()).folder
    found = compare_precisions(plans, tiny_graphs.fp32_folder(), samples())
    assert found.first is not None
    assert found.first.name == "decoder.layers.3.cache.key"


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says the same with other scales of channels at every seam; nothing tells of it."""
    model = tiny_graphs.random_model()
    plant(model)
    return checkpoint(tmp_path_factory.mktemp("smoothed") / "stage2", model)


def told(folder: Path, out: Path, figures: dict[str, Any]) -> Path:
    """A copy whose manifest has these figures too."""
    shutil.copytree(folder, out)
    manifest = read_manifest(out)
    write_manifest(out, msgspec.structs.replace(manifest, figures=manifest.figures | figures))
    return out


def test_channels_that_smoothing_scaled_are_judged_by_what_scaling_leaves(smoothed: Path, tmp_path: Path) -> None:
    found = compare_precisions(tiny_graphs.fp32_folder(), smoothed, samples())
    assert found.first is not None
    assert found.first.name == "vision.blocks.0.norm1"
    known = told(smoothed, tmp_path / "told", {"smooth": {"seams": {}}})
    found = compare_precisions(tiny_graphs.fp32_folder(), known, samples())
    assert found.first is None, found.reason
    assert least_cosine(found) > 0.9999
    assert {layer.name.rpartition(".")[2] for layer in found.layers if layer.rescaled} == {
        *("norm1", "norm2", "qkv", "ln_q", "v_proj", "value", "up_proj", "norm"),
        *("input_layernorm", "post_attention_layernorm"),
    }


def test_two_precisions_of_one_smoothing_are_compared_as_they_are(tmp_path: Path) -> None:
    folders: dict[str, dict[str, Any]] = {
        "fp32": {"smooth": {"seams": {}}},
        "int8": {"export": {"smooth": {"seams": {}}}},
    }
    sources = {"fp32": tiny_graphs.fp32_folder(), "int8": tiny_graphs.int8_folder()}
    a, b = (told(sources[name], tmp_path / name, figures) for name, figures in folders.items())
    assert not any(layer.rescaled for layer in compare_precisions(a, b, samples()).layers)


def test_isolated_is_refused_where_cached_channels_have_other_scales(tmp_path: Path) -> None:
    known = told(tiny_graphs.fp32_folder(), tmp_path / "told", {"smooth": {"seams": {}}})
    with pytest.raises(InputError, match=r"told cannot take the past of .*fp32: channels of its values have other"):
        compare_precisions(tiny_graphs.fp32_folder(), known, samples(), isolated=True)


def test_a_linear_with_outliers_is_tapped_behind_the_sum() -> None:
    for path in (tiny_graphs.fp32_folder() / "vision.onnx", tiny_graphs.fp32_folder() / "decoder.onnx"):
        model = onnx.load(path)
        layers = [layer for layer in linears(model) if layer.op == "MatMul"]
        splits = {layer.name: Split(np.array([1, 5]), 1.0) for layer in layers}
        made = quantised(model, layers, dict.fromkeys([layer.activation for layer in layers], 1.0), splits)
        assert plain_tensors(made) == plain_tensors(model)


def test_sums_over_pieces_are_the_figures_of_the_whole() -> None:
    r = np.random.default_rng(0)
    a = r.normal(size=(40, 7)).astype(np.float32)
    b = (a + 0.1 * r.normal(size=a.shape)).astype(np.float16)
    sums = LayerSums(7)
    for part in (slice(0, 13), slice(13, 40)):
        piece = LayerSums(7)
        piece.add(a[part].reshape(1, -1, 7), b[part].reshape(1, -1, 7))
        sums.merge(piece)
    assert sums.cosine() == pytest.approx(cosine(a, b), abs=1e-14)
    assert sums.norm_ratio() == pytest.approx(norm_ratio(b, a), abs=1e-14)
    scaled = LayerSums(7)
    scaled.add(a, a * np.array([1, 100, 0.01, 3, 1, 7, 1]))
    assert (scaled.cosine() or 1) < 0.9
    assert scaled.cosine(by_channel=True) == pytest.approx(1, abs=1e-12)
    b[:, 2] = a[:, 1]
    a[:, 2] *= 0.01
    energy = [float(np.square(a[:, c], dtype=np.float64).sum()) for c in range(7)]
    sums = LayerSums(7)
    sums.add(a, b)
    wanted = np.average([cosine(a[:, c], b[:, c]) for c in range(7)], weights=energy)
    assert sums.cosine(by_channel=True) == pytest.approx(float(wanted), abs=1e-12)


def test_the_table_marks_the_first_layer_and_shows_each_part_once(tmp_path: Path) -> None:
    layer = "decoder.layers.2.mlp.down_proj"
    broken = changed(tiny_graphs.fp32_folder(), tmp_path / "broken", {f"{layer}.weight": one_nan})
    found = compare_precisions(tiny_graphs.fp32_folder(), broken, samples())

    def shown(**options: bool) -> list[str]:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(table(found, **options))
        return [line for line in captured.get().splitlines() if line.startswith("│")]

    rows = shown()
    parts = [re.match(r"│ (\w+(\.(blocks|layers)\.\d+|\.merger)?)", row) for row in rows]
    assert [part[1] for part in parts if part][1:7] == [f"vision.blocks.{k}" for k in range(6)]
    assert len(rows) == 6 + 6 + 8
    (marked,) = [row for row in rows if "<- first" in row]
    assert layer in marked
    assert re.search(r"- │ +- │ +- │ +\d+ in B", marked)
    assert len(shown(every_layer=True)) == len(found.layers)
    json.dumps(msgspec.to_builtins(found), allow_nan=False)


def test_two_models_are_refused_by_what_differs(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_graphs.fp32_folder(), other)
    manifest = read_manifest(other)
    for name, value in (("image_size", 504), ("layers", 7), ("channels", 128), ("vocab_size", 99)):
        write_manifest(other, msgspec.structs.replace(manifest, settings=manifest.settings | {name: value}))
        with pytest.raises(InputError, match=rf"fp32 has {name} \d+, {other} has {value}: give two precisions of one"):
            compare_precisions(tiny_graphs.fp32_folder(), other, samples())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 5}, r"A \(.*\) has 5 blocks of vision, B \(.*\) has 6"),
        ({"intermediate_size": 96}, r"has vision\.blocks\.0\.mlp\.gate_proj of shape \(1, 324, 96\), B \(.*\) has"),
    ],
)
def test_two_visions_are_refused_by_what_differs(tmp_path: Path, change: dict[str, int], words: str) -> None:
    recipe, _ = load_recipe("export", "fusar-tiny", ModelRecipe)
    assert recipe.vision is not None
    recipe = msgspec.structs.replace(recipe, vision=msgspec.structs.replace(recipe.vision, **change))
    other = checkpoint(tmp_path / "other", new_model(recipe, tokenizer_path(recipe, "fusar-tiny")))
    with pytest.raises(InputError, match=words):
        compare_precisions(other, tiny_graphs.fp32_folder(), samples())


def test_a_folder_without_a_network_is_refused_by_its_stage(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(stage="simulate"))
    with pytest.raises(InputError, match=r"made by stage 'simulate', .* made by: export, calibrate, build"):
        compare_precisions(tmp_path, tiny_graphs.fp32_folder(), samples())
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        compare_precisions(tiny_graphs.fp32_folder(), tmp_path / "nothing", samples())


def test_without_samples_nothing_is_compared() -> None:
    with pytest.raises(DataError, match="no sample to compare on"):
        compare_precisions(tiny_graphs.fp32_folder(), tiny_graphs.int8_folder(), [])

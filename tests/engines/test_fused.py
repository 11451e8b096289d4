"""The fused decoder against the graph it was made of."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_graphs
from onnx import helper, numpy_helper

from fusar_edge.calib.graphs import GraphFolder, open_graphs
from fusar_edge.engines import fuse
from fusar_edge.engines.build import build
from fusar_edge.engines.fused import BLOCK, DOMAIN, ZERO, block_codes, fused
from fusar_edge.engines.layer_source import LayerSource, Weight
from fusar_edge.engines.plain_twin import plain_bundle, plain_decoder
from fusar_edge.errors import GateError, InputError, RecipeError
from fusar_edge.manifest import folder_hashes, read_manifest, write_manifest
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.backend import Backend, Cache, open_backend
from fusar_edge.runtime.bundle import Bundle, FusedFacts, open_bundle
from fusar_edge.runtime.ort_fused import FusedCache
from fusar_edge.runtime.session import Session
from fusar_edge.specs import EngineSpec

SPEC = """
name = "test"
engine = "onnxruntime"
status = "untested"
memory_mib = 512
threads = 1
cache_tokens = 256
decoder = "fused"
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("spec") / "test.toml"
    path.write_text(SPEC)
    return str(path)


@pytest.fixture(scope="module")
def bundles(spec: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Precision -> fused bundle."""
    folder = tmp_path_factory.mktemp("fused")
    for graphs in (tiny_graphs.fp32_folder(), tiny_graphs.int8_folder()):
        precision = open_graphs(graphs).precision
        build(spec, graphs, folder / precision, waive="random weights" if precision == "int8" else None)
    return {name: open_bundle(folder / name) for name in ("fp32", "int8")}


def graphs_of(precision: str) -> GraphFolder:
    return open_graphs(tiny_graphs.fp32_folder() if precision == "fp32" else tiny_graphs.int8_folder())


def step(backend: Backend, cache: Cache, tokens: int, seed: int = 0) -> np.ndarray:
    """Logits after `tokens` random ones, some of them visual, each axis at a place of its own."""
    r, first = np.random.default_rng((seed, cache.length, tokens)), cache.length
    index = np.full((1, tokens), -1, np.int32)
    index[0, 2 : tokens - 3] = r.permutation(81)[: max(tokens - 5, 0)]
    visual = np.random.default_rng(seed).normal(size=(1, 81, 256)).astype(np.float32)
    places = np.stack([np.arange(first, first + tokens), *r.integers(0, 90, (2, tokens))])[:, None].astype(np.int32)
    ids = r.integers(0, 4000, (1, tokens)).astype(np.int32)
    found = backend.step(cache, ids, visual, index, places)
    assert found.next_ids[0] == found.logits[0].argmax()
    return found.logits[0].copy()


def test_in_fp32_it_says_what_the_plain_decoder_says_in_prefill_decode_and_between(bundles: dict[str, Bundle]) -> None:
    backends = open_backend(bundles["fp32"], 1), open_backend(graphs_of("fp32").bundle(), 1)
    caches = [backend.new_cache(256) for backend in backends]
    for tokens in (60, 1, 1, 7, 1, 40):
        a, b = (step(backend, cache, tokens) for backend, cache in zip(backends, caches, strict=True))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_in_int8_it_is_closer_to_fp32_than_the_calibrated_graph(bundles: dict[str, Bundle]) -> None:
    backends = [open_backend(b, 1) for b in (graphs_of("fp32").bundle(), graphs_of("int8").bundle(), bundles["int8"])]
    caches = [backend.new_cache(256) for backend in backends]
    distance = np.zeros(2)
    for tokens in (60, 1, 1, 7, 1, 40):
        fp32, *int8 = (step(backend, cache, tokens) for backend, cache in zip(backends, caches, strict=True))
        distance += [np.linalg.norm(x - fp32) / np.linalg.norm(fp32) for x in int8]
    assert distance[1] < distance[0]


def test_what_was_truncated_leaves_no_trace(bundles: dict[str, Bundle]) -> None:
    backend = open_backend(bundles["int8"], 1)
    cache = backend.new_cache(128)
    step(backend, cache, 50)
    before = step(backend, cache, 1)
    cache.truncate(50)
    step(backend, cache, 70, seed=9)
    cache.truncate(50)
    np.testing.assert_array_equal(step(backend, cache, 1), before)


def test_rows_that_are_not_in_use_are_never_read(bundles: dict[str, Bundle]) -> None:
    backend = open_backend(bundles["int8"], 1)
    said = []
    for filling in (0.0, np.nan):
        cache = backend.new_cache(128)
        assert isinstance(cache, FusedCache)
        for rows in (cache.buffer, cache.cos, cache.sin):
            rows[...] = filling
        said.append([step(backend, cache, tokens) for tokens in (50, 1, 9)])
    np.testing.assert_array_equal(*said)
    assert np.isfinite(said).all()


def test_two_caches_of_one_backend_do_not_mix(bundles: dict[str, Bundle]) -> None:
    backend = open_backend(bundles["int8"], 1)
    one, other = backend.new_cache(128), backend.new_cache(64)
    alone = [step(backend, one, 50), step(backend, one, 1)]
    one.truncate(0)
    mixed = [step(backend, one, 50)]
    step(backend, other, 50, seed=3)
    mixed.append(step(backend, one, 1))
    np.testing.assert_array_equal(mixed, alone)


def test_tokens_that_do_not_fit_change_nothing(bundles: dict[str, Bundle]) -> None:
    backend = open_backend(bundles["int8"], 1)
    cache = backend.new_cache(52)
    step(backend, cache, 50)
    with pytest.raises(InputError, match="3 tokens after 50 do not fit the KV cache of 52"):
        step(backend, cache, 3)
    assert cache.length == 50
    step(backend, cache, 2)


def test_the_plain_decoder_comes_back_bit_for_bit(bundles: dict[str, Bundle]) -> None:
    for precision, bundle in bundles.items():
        source = onnx.load(graphs_of(precision).path / "decoder.onnx")
        assert plain_decoder(bundle).SerializeToString() == source.SerializeToString()


def test_a_kept_linear_comes_back_as_its_blocks(tmp_path: Path, spec: str) -> None:
    shutil.copytree(tiny_graphs.int8_folder(), tmp_path / "graphs")
    layer, path = "decoder.layers.0.mlp.down_proj", tmp_path / "graphs" / "decoder.onnx"
    model = onnx.load(path)
    weight = LayerSource(model).weight(layer)
    floats = (weight.values * weight.scale[:, None]).astype(np.float32)  # what is kept is float in the graph
    node = LayerSource(model).nodes[layer]
    node.input[1] = "kept"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(floats.T), "kept"))
    onnx.save(model, path)
    manifest = read_manifest(tmp_path / "graphs")
    manifest.files = folder_hashes(tmp_path / "graphs")
    write_manifest(tmp_path / "graphs", manifest)
    build(spec, tmp_path / "graphs", tmp_path / "bundle", waive="random weights")
    found = LayerSource(plain_decoder(open_bundle(tmp_path / "bundle"))).weight(layer)
    largest = np.abs(floats).reshape(len(floats), -1, BLOCK).max(-1).repeat(BLOCK, 1)
    assert found.scale is None
    assert (np.abs(found.values - floats) <= largest / 127 * 0.501).all()
    assert (found.values != floats).any()


def test_a_plain_bundle_of_a_fused_one_opens_and_answers_as_the_source(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    plain = plain_bundle(bundles["int8"], tmp_path / "plain")
    assert plain.settings.fused is None
    assert plain_bundle(plain, tmp_path / "again") is plain
    said = []
    for bundle in (plain, graphs_of("int8").bundle()):
        backend = open_backend(bundle, 1)
        said.append(step(backend, backend.new_cache(128), 50))
    np.testing.assert_array_equal(*said)


@pytest.mark.parametrize("width", [BLOCK, 3 * BLOCK, BLOCK + 16])
def test_a_product_is_that_of_the_codes_and_scales(width: int) -> None:
    r = np.random.default_rng(0)
    weight = r.normal(size=(32, width)).astype(np.float32)
    codes, scale = block_codes(Weight(weight, None))
    kept = (codes.astype(np.float32) - ZERO) * scale[..., None]
    np.testing.assert_allclose(kept.reshape(32, -1)[:, :width], weight, atol=float(scale.max()) * 0.501)
    shape = {"K": width, "N": 32, "bits": 8, "block_size": BLOCK}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scale"], ["y"], domain=DOMAIN, accuracy_level=0, **shape)
    tensors = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale.ravel(), "scale")]
    values = [helper.make_tensor_value_info(name, 1, [5, size]) for name, size in (("x", width), ("y", 32))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = r.normal(size=(5, width)).astype(np.float32)
    y = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(y, x @ kept.reshape(32, -1)[:, :width].T, atol=0.05 * np.abs(y).max())


def test_a_bundle_is_fused_where_the_spec_asks_and_says_what_it_holds(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["int8"]
    assert bundle.settings.fused is not None
    figures = bundle.manifest.figures["fused_vs_plain"]
    assert figures["logits_cosine"] > 0.99
    assert figures["tokens"] > 100
    assert {"decoder.onnx", "decoder.plain.onnx"} <= set(bundle.manifest.files)
    assert (bundle.folder / "decoder.plain.onnx").stat().st_size < 300_000
    operators = {node.op_type for node in onnx.load(bundle.file("decoder.onnx")).graph.node}
    assert {"MatMulNBits", "GroupQueryAttention", "SkipSimplifiedLayerNormalization"} <= operators
    session = Session(bundle, threads=1)
    session.look(np.zeros((252, 252), np.float32))
    assert session.ask("count").question.startswith("How many ship targets")


def test_a_float_head_that_is_the_embedding_is_stored_once(bundles: dict[str, Bundle]) -> None:
    plain = (graphs_of("fp32").path / "decoder.onnx").stat().st_size
    assert (bundles["fp32"].folder / "decoder.onnx").stat().st_size < plain


def test_int8_is_measured_against_fp32_on_what_is_shipped(spec: str, tmp_path: Path) -> None:
    manifest = build(
        spec,
        tiny_graphs.int8_folder(),
        tmp_path / "bundle",
        data=tiny_graphs.other_tiles(),
        reference=tiny_graphs.fp32_folder(),
        images=1,
        waive="random weights",
    )
    before = graphs_of("int8").manifest.figures["int8_vs_fp32"]
    assert set(manifest.figures["int8_vs_fp32"]) == set(before)
    assert manifest.figures["int8_vs_fp32"] != before


def test_a_decoder_that_says_something_else_is_not_published(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto, settings: object) -> tuple[onnx.ModelProto, FusedFacts]:
        made, facts = fused(model, settings)  # type: ignore[arg-type]
        head = next(t for t in made.graph.initializer if t.name == "decoder.lm_head.codes")
        head.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(head), 1, 0), head.name))
        return made, facts

    monkeypatch.setattr(fuse, "fused", broken)
    with pytest.raises(GateError, match=r"cosine -?0\.\d+ with the plain one's; 0\.99 is asked for"):
        build(spec, tiny_graphs.int8_folder(), tmp_path / "bundle", waive="random weights")
    assert not (tmp_path / "bundle").exists()


def test_a_graph_of_another_exporter_is_refused_by_what_it_lacks() -> None:
    graphs = graphs_of("int8")
    model = onnx.load(graphs.path / "decoder.onnx")
    for node in model.graph.node:
        if node.name == "decoder.layers.3.mlp.up_proj":
            node.name = "up"
    with pytest.raises(InputError, match=r"lacks decoder\.layers\.3\.mlp\.up_proj, .* decoder = \"plain\""):
        fused(model, graphs.settings)


def test_a_scaled_rotary_embedding_is_refused() -> None:
    graphs = graphs_of("fp32")
    model = onnx.load(graphs.path / "decoder.onnx")
    source = LayerSource(model)
    scale = source.makers[source.nodes["decoder/Mul_3"].input[1]].attribute[0].t
    scale.CopyFrom(numpy_helper.from_array(np.array(1.2, np.float32)))
    with pytest.raises(InputError, match="scaled rotary"):
        fused(model, graphs.settings)


def test_facts_that_do_not_fit_the_heads_are_refused(bundles: dict[str, Bundle]) -> None:
    facts = bundles["int8"].settings.fused
    assert facts is not None
    with pytest.raises(ValueError, match="head_dim / 2 frequencies"):
        msgspec.structs.replace(bundles["int8"].settings, fused=msgspec.structs.replace(facts, sections=(1, 2, 3)))


def test_a_fused_decoder_behind_settings_without_it_is_refused(bundles: dict[str, Bundle]) -> None:
    settings = msgspec.structs.replace(bundles["int8"].settings, fused=None)
    with pytest.raises(InputError, match=r"decoder\.onnx: its inputs are .*keys\.0.*they must be .*past"):
        open_backend(dataclasses.replace(bundles["int8"], settings=settings), 1)


def test_only_onnx_runtime_takes_a_fused_decoder(tmp_path: Path) -> None:
    _, text = load_recipe("engines", "jetson-orin-nx-16gb", EngineSpec)
    (tmp_path / "nx.toml").write_text(text.replace("[hardware]", 'decoder = "fused"\n[hardware]', 1))
    with pytest.raises(RecipeError, match="fused"):
        load_recipe("engines", str(tmp_path / "nx.toml"), EngineSpec)

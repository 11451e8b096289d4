"""FP16 parts of the graphs, against the graphs they were made of, through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_graphs
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fusar_edge.engines.half import HalfReport, half_file, half_graph
from fusar_edge.engines.plain_twin import plain_bundle
from fusar_edge.errors import GateError
from fusar_edge.runtime.bundle import BundleSettings, open_bundle

Feed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, BundleSettings, dict[str, HalfReport]]:
    """The default bundle's INT8 graphs, and their half copies."""
    out = tmp_path_factory.mktemp("half")
    bundle = plain_bundle(open_bundle("default"), tmp_path_factory.mktemp("plain") / "bundle")
    reports = {name: half_file(bundle.file(name), out / name) for name in ("vision.onnx", "decoder.onnx")}
    return bundle.folder, out, bundle.settings, reports


def run(path: Path, feed: Feed) -> Feed:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would drop casts
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    half = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
    given = {name: array.astype(np.float16) if name in half else array for name, array in feed.items()}
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, given), strict=True))


def close(a: np.ndarray, b: np.ndarray, cosine: float, norm: float = 1e-2) -> None:
    """Behind an INT8 linear the least change can move a value by a whole step: norms agree to 1 %."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    assert x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) > cosine
    assert abs(np.linalg.norm(y) / np.linalg.norm(x) - 1) < norm


def vision_feed(s: BundleSettings) -> Feed:
    r = np.random.default_rng(0)
    return {
        "pixels": r.random((2, 1, s.image_size, s.image_size), np.float32),
        "anchors": r.normal(size=(2, 9, 64)).astype(np.float32) / 8,
        "anchor_positions": r.random((2, 9, 2), np.float32),
        "anchor_mask": np.array([[1] * 9, [1] * 4 + [0] * 5], np.float32),
    }


def decoder_feed(s: BundleSettings, tokens: int, past: np.ndarray | None = None) -> Feed:
    r = np.random.default_rng(tokens)
    rows = np.zeros((0, s.layers, 2, 1, s.kv_heads, s.head_dim), np.float32) if past is None else past
    index = np.full((1, tokens), -1, np.int32)
    index[0, 3 : tokens - 5] = np.arange(max(0, tokens - 8))
    return {
        "input_ids": r.integers(0, 4000, (1, tokens)).astype(np.int32),
        "visual_tokens": r.normal(size=(1, s.cells**2, s.channels)).astype(np.float32),
        "visual_index": index,
        "position_ids": np.tile(np.arange(len(rows), len(rows) + tokens), (3, 1, 1)).astype(np.int32),
        "past": rows,
    }


def test_vision_with_half_attention_equals_the_graph_it_was_made_of(shipped: tuple) -> None:
    before, after, settings, reports = shipped
    feed = vision_feed(settings)
    close(run(before / "vision.onnx", feed)["visual_tokens"], run(after / "vision.onnx", feed)["visual_tokens"], 0.9999)
    assert reports["vision.onnx"].attention >= 2 * 6


def test_the_decoder_says_the_same_tokens_with_a_half_cache_in_prefill_and_decode(shipped: tuple) -> None:
    before, after, settings, reports = shipped
    assert reports["decoder.onnx"].attention == 2 * settings.layers
    past, half_past = None, None
    for tokens in (60, 1, 1, 7):
        one = run(before / "decoder.onnx", decoder_feed(settings, tokens, past))
        two = run(after / "decoder.onnx", decoder_feed(settings, tokens, half_past))
        # Noise for tokens, every linear in INT8: on real tiles it is 0.999997 (docs/log.md).
        close(one["logits"], two["logits"], 0.999, 3e-2)
        assert one["next_ids"].tolist() == two["next_ids"].tolist()
        assert two["new"].dtype == np.float16
        past = one["new"] if past is None else np.concatenate([past, one["new"]])
        half_past = two["new"] if half_past is None else np.concatenate([half_past, two["new"]])


def test_the_cache_is_read_in_half_precision_alone_and_int8_linears_are_untouched(shipped: tuple) -> None:
    before, after, _, _ = shipped
    for name in ("vision.onnx", "decoder.onnx"):
        old, new = onnx.load(before / name), onnx.load(after / name)
        onnx.checker.check_model(new, full_check=True)
        assert int8_linears(new) == int8_linears(old) != []
        types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(new).graph.value_info}
        softmax = [node.input[0] for node in new.graph.node if node.op_type == "Softmax"]
        assert softmax
        assert {types[tensor] for tensor in softmax} == {TensorProto.FLOAT}
    readers = [node for node in new.graph.node if "past" in node.input]
    assert {node.op_type for node in readers} == {"Shape", "Slice"}


def int8_linears(model: onnx.ModelProto) -> list[str]:
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    dequantised = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and all(made.get(name) == "DequantizeLinear" for name in node.input)
    ]
    return sorted(dequantised)


def test_linears_of_an_fp32_graph_get_half_weights_but_those_that_are_kept(tmp_path: Path) -> None:
    folder = tiny_graphs.fp32_folder()
    report = half_file(folder / "decoder.onnx", tmp_path / "half.onnx", keep=["*.up_proj", "*lm_head"])
    kept = {name for name in report.kept if name.endswith(("up_proj", "lm_head"))}
    assert set(report.kept) == kept != set()
    assert any(name.endswith("q_proj") for name in report.linears)
    assert (tmp_path / "half.onnx").stat().st_size < 0.8 * (folder / "decoder.onnx").stat().st_size
    none = half_file(folder / "decoder.onnx", tmp_path / "none.onnx", linears=False)
    assert none.linears == ()
    assert set(none.kept) >= set(report.linears)


def product(weight: float) -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.full((4, 4), weight, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "layer.fc")], "g", [x], [y], [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_weight_that_half_precision_cannot_hold_is_named() -> None:
    with pytest.raises(GateError, match=r"layer\.fc: its weights reach 70000, FP16 ends at 65504"):
        half_graph(product(70_000))
    assert half_graph(product(60_000)).linears == ("layer.fc",)
    assert half_graph(product(70_000), keep=["layer.*"]).kept == ("layer.fc",)


def test_inputs_beyond_half_precision_pass_through_down_proj() -> None:
    x = np.array([[1e6, 3.0, -2e5, 0.5], [1.0, 2.0, 3.0, 4.0]], np.float32)
    for name, survives in (("layer.mlp.down_proj", True), ("layer.mlp.up_proj", False)):
        model = product(0.25)
        model.graph.node[0].name = name
        assert half_graph(model).linears == (name,)
        onnx.checker.check_model(model, full_check=True)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # ONNX Runtime drops a pair of casts, and with it the overflow
            result = ReferenceEvaluator(model).run(None, {"x": x})[0]
        np.testing.assert_allclose(result[1], x[1] @ np.full((4, 4), 0.25), rtol=1e-3)
        assert np.isfinite(result[0]).all() == survives
        if survives:
            np.testing.assert_allclose(result[0], x[0] @ np.full((4, 4), 0.25), rtol=1e-3)


def test_a_result_that_others_read_keeps_its_name_and_type(tmp_path: Path) -> None:
    model = product(0.5)
    half_graph(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "g.onnx")
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    result = run(tmp_path / "g.onnx", {"x": x})["y"]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, x @ np.full((4, 4), 0.5), rtol=1e-3)

"""The two graphs: what they compute, and what stands in the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_model import random_model

from fusar_edge.errors import GateError
from fusar_edge.export.decoder_graph import DecoderGraph
from fusar_edge.export.graph_file import check_operators, write_graph
from fusar_edge.export.onnx_configs import FusarDecoderOnnxConfig
from fusar_edge.export.parity import DECODER_OUTPUTS, rollout, run_from_file, run_from_module, sample
from fusar_edge.export.vision_graph import Tower, VisionGraph
from fusar_edge.model.network import FusarForConditionalGeneration
from fusar_edge.model.vision import hf_patches_from_grey
from fusar_edge.specs import ModelRecipe

Model = FusarForConditionalGeneration


def test_the_graphs_say_the_shapes_and_types_of_the_contract(graphs: Path) -> None:
    def described(values: object) -> dict[str, tuple[int, list[object]]]:
        kinds = ((v.name, v.type.tensor_type) for v in values)  # type: ignore[attr-defined]  # protobuf
        return {n: (t.elem_type, [d.dim_param or d.dim_value for d in t.shape.dim]) for n, t in kinds}

    real, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    vision, decoder = (onnx.load(graphs / name).graph for name in ("vision.onnx", "decoder.onnx"))
    assert described(vision.input) == {
        "pixels": (real, ["batch", 1, 140, 140]),
        "anchors": (real, ["batch", "anchors", 64]),
        "anchor_positions": (real, ["batch", "anchors", 2]),
        "anchor_mask": (real, ["batch", "anchors"]),
    }
    assert described(vision.output) == {"visual_tokens": (real, ["batch", 25, 64])}
    assert described(decoder.input) == {
        "input_ids": (integer, ["batch", "tokens"]),
        "visual_tokens": (real, ["batch", "visual", 64]),
        "visual_index": (integer, ["batch", "tokens"]),
        "position_ids": (integer, [3, "batch", "tokens"]),
        "past": (real, ["cached", 2, 2, "batch", 2, 16]),
    }
    assert described(decoder.output) == {
        "logits": (real, ["batch", 128]),
        "next_ids": (integer, ["batch"]),
        "new": (real, ["tokens", 2, 2, "batch", 2, 16]),
    }


def test_every_linear_layer_is_a_node_of_its_own_name_with_its_own_weight(graphs: Path, model: Model) -> None:
    for name, roots in (("vision.onnx", {"vision": model.model.visual, "tlm": model.tlm}),
                        ("decoder.onnx", {"decoder": model.model.language_model})):  # fmt: skip
        graph = onnx.load(graphs / name).graph
        nodes = {n.name: n for n in graph.node}
        weights = {w.name: w for w in graph.initializer}
        assert len(nodes) == len(graph.node)
        for root, module in roots.items():
            for path, layer in module.named_modules():
                if not isinstance(layer, torch.nn.Linear):
                    continue
                node = nodes[f"{root}.{path}"]
                assert (node.op_type, node.input[1]) == ("MatMul", f"{root}.{path}.weight")
                stored = onnx.numpy_helper.to_array(weights[node.input[1]])
                np.testing.assert_array_equal(stored, layer.weight.detach().numpy().T)
                assert (f"{root}.{path}.bias" in weights) == (layer.bias is not None)
        for layer in ("vision.patch_embed", "decoder.embed_tokens", "decoder.lm_head"):
            if layer.startswith(name[:6]):
                assert layer in nodes


def test_equal_tables_are_stored_once(graphs: Path) -> None:
    for name in ("vision.onnx", "decoder.onnx"):
        nodes = [n for n in onnx.load(graphs / name).graph.node if n.op_type == "Constant"]
        tables = [v for v in (n.attribute[0].SerializeToString() for n in nodes) if len(v) >= 1024]
        assert len(tables) == len(set(tables)), name


def test_an_embedding_tied_to_the_head_is_stored_once(graphs: Path) -> None:
    graph = onnx.load(graphs / "decoder.onnx").graph
    assert [w.name for w in graph.initializer if 128 in w.dims] == ["decoder.embed_tokens.weight"]


def test_a_head_of_its_own_keeps_its_own_weight(recipe: ModelRecipe, tmp_path: Path) -> None:
    model = random_model(recipe)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(128, 64, generator=torch.Generator().manual_seed(9)))
    graph = DecoderGraph(model).eval()
    write_graph(graph, FusarDecoderOnnxConfig(graph.config), tmp_path / "decoder.onnx")
    weights = {w.name: w for w in onnx.load(tmp_path / "decoder.onnx").graph.initializer}
    for name, layer in (("embed_tokens", model.model.language_model.embed_tokens), ("lm_head", model.lm_head)):
        stored = onnx.numpy_helper.to_array(weights[f"decoder.{name}.weight"])
        np.testing.assert_array_equal(stored, layer.weight.detach().numpy())


def test_neither_graph_holds_what_a_tensorrt_refuses(graphs: Path) -> None:
    for name in ("vision.onnx", "decoder.onnx"):
        model = onnx.load(graphs / name)
        check_operators(model, name)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        onnx.checker.check_model(graphs / name, full_check=True)


@pytest.mark.parametrize(("operator", "domain"), [("Loop", ""), ("Attention", ""), ("FusedMatMul", "com.microsoft")])
def test_a_forbidden_operator_is_named(operator: str, domain: str) -> None:
    node = onnx.helper.make_node(operator, ["x"], ["y"], domain=domain)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    with pytest.raises(GateError, match=rf"some\.onnx holds .*{operator}"):
        check_operators(model, "some.onnx")


def test_no_shape_is_computed_in_the_tower_and_no_cast_is_idle(graphs: Path) -> None:
    nodes = onnx.load(graphs / "vision.onnx").graph.node
    assert not [n.name for n in nodes if n.op_type == "Shape" and n.name.startswith("vision")]
    assert not [n.name for n in nodes if n.op_type == "Cast"]


def test_with_every_anchor_masked_the_tokens_are_the_towers_bit_for_bit(model: Model, graphs: Path) -> None:
    graph, given = VisionGraph(model).eval(), sample(model, 2)
    values = given.vision | {"anchor_mask": np.zeros_like(given.vision["anchor_mask"])}
    with torch.no_grad():
        tower = graph.vision(torch.from_numpy(values["pixels"])).numpy()
    masked = run_from_module(graph, ("visual_tokens",))(values)["visual_tokens"]
    np.testing.assert_array_equal(masked, tower)
    onnx_masked = run_from_file(graphs / "vision.onnx")(values)["visual_tokens"]
    np.testing.assert_allclose(onnx_masked, tower, atol=1e-6 * np.abs(tower).max())
    anchored = run_from_module(graph, ("visual_tokens",))(given.vision)["visual_tokens"]
    assert np.abs(anchored - tower).max() > 0.01


@pytest.mark.parametrize("anchors", [1, 3, 40])
def test_the_number_of_anchors_is_free(model: Model, graphs: Path, anchors: int) -> None:
    rng = np.random.default_rng(anchors)
    values = {
        "pixels": rng.random((1, 1, 140, 140), np.float32),
        "anchors": rng.standard_normal((1, anchors, 64), np.float32),
        "anchor_positions": rng.random((1, anchors, 2), np.float32),
        "anchor_mask": np.ones((1, anchors), np.float32),
    }
    ours = run_from_file(graphs / "vision.onnx")(values)["visual_tokens"]
    with torch.no_grad():
        reference = model.visual_tokens(*(torch.from_numpy(v) for v in values.values())).numpy()
    np.testing.assert_allclose(ours, reference, atol=2e-5)


def test_a_text_row_reads_no_visual_token(graphs: Path, model: Model) -> None:
    run, given = run_from_file(graphs / "decoder.onnx"), sample(model, 1)
    values = {
        "input_ids": np.array([[3, 4, 5]], np.int32),
        "visual_tokens": np.full((1, 1, 64), np.nan, np.float32),
        "visual_index": np.full((1, 3), -1, np.int32),
        "position_ids": given.position_ids[:, :, :3].copy(),
        "past": np.zeros((0, 2, 2, 1, 2, 16), np.float32),
    }
    assert np.isfinite(run(values)["logits"]).all()
    values["visual_index"] = np.array([[-1, 0, -1]], np.int32)
    assert np.isnan(run(values)["logits"]).all()


def test_a_reused_prefix_and_single_steps_give_what_one_run_gives(model: Model, graphs: Path) -> None:
    given = sample(model, 2, seed=3)
    visual = np.random.default_rng(0).standard_normal((2, 25, 64), np.float32)
    for run in (run_from_module(DecoderGraph(model), DECODER_OUTPUTS), run_from_file(graphs / "decoder.onnx")):
        stepped = rollout(run, visual, given, (2, 2, 2, 2, 16), reuse=True)
        whole = run(
            {
                "input_ids": given.input_ids,
                "visual_tokens": visual,
                "visual_index": given.visual_index,
                "position_ids": given.position_ids,
                "past": np.zeros((0, 2, 2, 2, 2, 16), np.float32),
            }
        )
        np.testing.assert_allclose(np.concatenate([s["new"] for s in stepped]), whole["new"], atol=1e-5)
        np.testing.assert_allclose(stepped[-1]["logits"], whole["logits"], atol=1e-5)
        np.testing.assert_array_equal(whole["next_ids"], whole["logits"].argmax(-1))


def test_ragged_windows_of_504_pixels_agree_with_hugging_face(recipe: ModelRecipe) -> None:
    import msgspec

    assert recipe.vision is not None
    vision = msgspec.structs.replace(recipe.vision, window_size=112, hidden_size=16, intermediate_size=16)
    model = random_model(msgspec.structs.replace(recipe, vision=vision, image_size=504))
    graph = Tower(model.model.visual, 504).eval()
    assert graph.blocks[0].attn.groups == ((16, 64), (8, 32), (1, 16))
    assert graph.blocks[1].attn.groups == ((1, 1296),)
    pixels = torch.from_numpy(sample(model, 2).vision["pixels"])
    with torch.no_grad():
        reference = model.model.visual(*hf_patches_from_grey(pixels)).reshape(2, 324, -1)
        torch.testing.assert_close(graph(pixels), reference, atol=2e-5, rtol=1e-4)


def test_large_weights_go_to_one_file_beside_the_graph(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # Optimum then does what it does beyond 2 GiB
    graph = DecoderGraph(model).eval()
    write_graph(graph, FusarDecoderOnnxConfig(graph.config), tmp_path / "decoder.onnx", large=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "decoder.onnx.data"]
    given = sample(model, 1)
    visual = np.zeros((1, 25, 64), np.float32)
    runs = run_from_file(tmp_path / "decoder.onnx"), run_from_module(graph, DECODER_OUTPUTS)
    ours, reference = (rollout(run, visual, given, (2, 2, 1, 2, 16), reuse=False)[-1] for run in runs)
    np.testing.assert_allclose(ours["logits"], reference["logits"], atol=1e-5)


def test_rope_that_depends_on_the_length_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.model.language_model.rotary_emb, "rope_type", "dynamic")
    with pytest.raises(ValueError, match="dynamic"):
        DecoderGraph(model)

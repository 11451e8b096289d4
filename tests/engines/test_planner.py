"""Memory of a model on a device: counted against real files, refused where it cannot be."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fusar_edge import cli
from fusar_edge.calib.graphs import GraphFolder
from fusar_edge.engines import planner
from fusar_edge.engines.memory import MIB, plan_memory, weight_format
from fusar_edge.engines.plain_twin import plain_bundle
from fusar_edge.engines.planner import Plan, plan, plan_graphs, plan_shape, require_fit, require_room, what_fits
from fusar_edge.engines.shapes import ModelShape, decoder_linears, shape_from_recipe, tower_from_spec, vision_linears
from fusar_edge.errors import DeviceError, RecipeError
from fusar_edge.manifest import Manifest, read_manifest
from fusar_edge.recipes import load_recipe
from fusar_edge.runtime.bundle import DEFAULT, open_bundle
from fusar_edge.runtime.cache import KvCache
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY
from fusar_edge.specs import CalibRecipe, EngineSpec, ModelRecipe, VisionSpec

_FOLDER = tempfile.TemporaryDirectory(prefix="fusar-edge-tests-")
KEEP = load_recipe("calib", "w8a8-percentile", CalibRecipe)[0].keep


def shape_of(name: str) -> ModelShape:
    return shape_from_recipe(load_recipe("export", name, ModelRecipe)[0], name)


def spec_of(name: str, **changes: object) -> EngineSpec:
    return msgspec.structs.replace(load_recipe("engines", name, EngineSpec)[0], **changes)


@functools.cache
def default_graphs() -> GraphFolder:
    """The default bundle's graphs as `calibrate` leaves them."""
    plain = plain_bundle(open_bundle("default"), Path(_FOLDER.name) / "graphs")
    return GraphFolder(plain.folder, default_manifest(), plain.settings, DEFAULT_RADIOMETRY)


def default_manifest() -> Manifest:
    manifest = read_manifest(DEFAULT)
    manifest.stage = "calibrate"
    return manifest


# Counted against what there is ----------------------------------------------------------------------------------------


def test_weights_are_those_of_the_default_bundle_s_files_within_three_per_cent() -> None:
    memory = plan("cpu", "fusar-tiny").memory
    vision, decoder = ((DEFAULT / f"{name}.onnx").stat().st_size for name in ("vision", "decoder"))
    assert memory.bytes_of("vision weights") == pytest.approx(vision, rel=0.03)
    assert memory.bytes_of("decoder weights") + memory.bytes_of("embedding") == pytest.approx(decoder, rel=0.02)


def test_weights_are_the_numbers_in_the_default_bundle_s_graphs_almost_to_the_byte() -> None:
    onnx = pytest.importorskip("onnx")
    counted = {}
    for name in ("vision", "decoder"):
        graph = onnx.load(DEFAULT / f"{name}.onnx").graph
        constants = [node.attribute[0].t for node in graph.node if node.op_type == "Constant"]
        counted[name] = sum(onnx.numpy_helper.to_array(t).nbytes for t in [*graph.initializer, *constants])
    memory = plan("cpu", "fusar-tiny").memory
    assert memory.bytes_of("vision weights") == pytest.approx(counted["vision"], rel=0.002)
    assert memory.bytes_of("decoder weights") + memory.bytes_of("embedding") == pytest.approx(
        counted["decoder"], rel=0.002
    )


def test_layers_have_the_names_that_calibration_found_in_the_graphs() -> None:
    graphs, shape = default_manifest().figures["graphs"], shape_of("fusar-tiny")
    for file, linears in (("vision.onnx", vision_linears(shape)), ("decoder.onnx", decoder_linears(shape))):
        assert {x.name for x in linears} == set(graphs[file]["ranges"]) | set(graphs[file]["kept"])


def test_the_cache_is_the_one_that_the_runtime_allocates() -> None:
    settings = default_graphs().settings
    row = (settings.layers, 2, 1, settings.kv_heads, settings.head_dim)
    cache = KvCache(settings.context_tokens, row, np.float32)
    assert plan("cpu", "fusar-tiny").memory.bytes_of("KV cache") == cache.buffer.nbytes


def test_half_a_cache_is_half_the_bytes() -> None:
    shape, weights = shape_of("fusar-gpt-7b"), weight_format("int8", KEEP)
    whole = plan_memory(shape, spec_of("h200", kv_dtype="float32"), weights).bytes_of("KV cache")
    half = plan_memory(shape, spec_of("h200", kv_dtype="float16"), weights).bytes_of("KV cache")
    assert (whole, half) == (28 * 2 * 4 * 128 * 2048 * 4, whole / 2)


@pytest.mark.parametrize(("name", "published"), [("fusar-gpt-7b", 8.292e9), ("fusar-gpt-3b", 3.755e9)])
def test_parameters_are_the_published_counts_and_tlm(name: str, published: float) -> None:
    shape = shape_of(name)
    tlm = 64 * shape.tlm_hidden + shape.tlm_hidden * 2 * shape.language.hidden
    assert shape.parameters == pytest.approx(published + tlm, rel=1e-3)


def test_the_vocabulary_is_the_bundle_s() -> None:
    assert shape_of("fusar-tiny").language.vocab == default_graphs().settings.vocab_size


@pytest.mark.parametrize(("image", "window"), [(504, 112), (252, 84), (280, 112)])
def test_window_pairs_are_those_of_patches_in_the_same_window(image: int, window: int) -> None:
    vision = VisionSpec(
        depth=2, hidden_size=64, num_heads=4, intermediate_size=64, window_size=window, fullatt_block_indexes=(1,)
    )
    axis = np.arange(image // 14) // (window // 14)
    windows = (axis[:, None] * 100 + axis).ravel()
    assert tower_from_spec(vision, image).window_pairs == (windows[:, None] == windows).sum()


def test_half_precision_halves_all_but_int8_layers_and_the_embedding() -> None:
    shape, spec = shape_of("fusar-gpt-7b"), spec_of("h200")
    whole, half = (plan_memory(shape, spec, weight_format(p, KEEP)) for p in ("int8", "int8-fp16"))
    down = 28 * 18944 * 3584
    saved = whole.bytes_of("decoder weights") - half.bytes_of("decoder weights")
    assert saved == pytest.approx(2 * down, rel=0.001)
    assert whole.bytes_of("embedding") == half.bytes_of("embedding") == 2 * 152064 * 3584


def test_a_tied_head_is_stored_twice_only_where_it_is_quantised() -> None:
    shape, spec = shape_of("fusar-gpt-3b"), spec_of("h200")
    table = 151936 * 2048
    totals = {}
    for precision in ("fp16", "int8-fp16"):
        memory = plan_memory(shape, spec, weight_format(precision, KEEP))
        totals[precision] = memory.bytes_of("embedding") + memory.bytes_of("decoder weights")
    linears = sum(x.inputs * x.outputs for x in decoder_linears(shape)) - table
    assert totals["fp16"] == pytest.approx(2 * (linears + table), rel=0.001)
    assert totals["int8-fp16"] > 2 * table + table + linears


def test_baked_anchors_take_the_mlp_out_of_the_engine() -> None:
    with_mlp, baked = (plan("h200", "fusar-gpt-7b", baked=b).memory.bytes_of("vision weights") for b in (False, True))
    mlp = 64 * 14336 + 14336 * 7168
    assert with_mlp - baked == pytest.approx(mlp - 4 * 33 * 7168, rel=0.01)


def test_a_plan_that_would_not_hold_the_decoder_twice_says_so() -> None:
    tight, roomy = (plan(spec, "fusar-gpt-7b", precision="int8-fp16") for spec in ("jetson-orin-nx-16gb", "h200"))
    assert tight.problem is None
    assert "once for each of its two profiles" in (tight.risk or "")
    assert roomy.risk is None
    assert plan("jetson-orin-nano-8gb", "fusar-gpt-7b").risk is None  # it does not fit in the first place


def test_vision_scratch_grows_with_the_batch_and_holds_the_scores_of_a_full_block() -> None:
    shape, weights = shape_of("fusar-gpt-7b"), weight_format("int8", KEEP)
    one, eight = (
        plan_memory(shape, spec_of("h200", vision_batch=b), weights).bytes_of("vision scratch") for b in (1, 8)
    )
    assert eight == 8 * one
    assert one > 2 * 16 * 1296**2 * 4


# Refused ------------------------------------------------------------------------------------------------------------


def test_7b_on_8_gb_is_refused_with_what_would_fit() -> None:
    planned = plan("jetson-orin-nano-8gb", "fusar-gpt-7b")
    with pytest.raises(DeviceError, match="does not fit jetson-orin-nano-8gb") as caught:
        require_fit(planned)
    message = str(caught.value)
    assert "here, fusar-tiny" in message
    assert "this model on jetson-orin-nx-16gb, jetson-agx-orin-64gb, jetson-thor, h200" in message
    assert "fusar-gpt-3b" not in message  # it does not fit either


def test_no_change_makes_7b_fit_8_gb() -> None:
    assert not [line for line in what_fits(plan("jetson-orin-nano-8gb", "fusar-gpt-7b")) if " with " in line]


def test_the_least_change_is_named_and_is_enough() -> None:
    planned = plan("jetson-orin-nx-16gb", "fusar-gpt-7b", precision="int8")
    first = what_fits(planned)[0]
    assert first.startswith("here, with precision int8-fp16")
    assert " and " not in first
    assert plan("jetson-orin-nx-16gb", "fusar-gpt-7b", precision="int8-fp16").problem is None


def test_several_small_changes_are_named_together_where_none_is_enough_alone() -> None:
    shape, weights, spec = shape_of("fusar-gpt-7b"), weight_format("int8", KEEP), spec_of("jetson-agx-orin-64gb")
    small = msgspec.structs.replace(spec, cache_tokens=576, prefill_tokens=384, vision_batch=1)
    least = plan_shape(shape.baked(), small, weights).memory.needed
    tight = plan_shape(shape, msgspec.structs.replace(spec, memory_mib=least // MIB + 1), weights)
    assert what_fits(tight)[0].count(" and ") == 2


def test_what_fits_exactly_fits_and_a_byte_less_does_not() -> None:
    planned = plan("h200", "fusar-tiny")
    need = planned.memory.needed
    assert replace(planned, memory=replace(planned.memory, available=need)).problem is None
    assert replace(planned, memory=replace(planned.memory, available=need - 1)).problem


def test_a_cache_without_room_for_image_and_prompt_is_refused() -> None:
    planned = plan_shape(
        shape_of("fusar-gpt-3b"), spec_of("h200", cache_tokens=340, prefill_tokens=340), weight_format("int8", KEEP)
    )
    with pytest.raises(DeviceError, match="an image and its prompt are 370 tokens"):
        require_fit(planned)


def test_a_peak_of_building_beyond_the_device_is_a_warning_not_a_refusal() -> None:
    planned = plan("jetson-orin-nx-16gb", "fusar-gpt-7b", precision="int8-fp16")
    require_fit(planned)
    assert "building takes" in str(planned.build_warning)
    assert plan("jetson-agx-orin-64gb", "fusar-gpt-7b").build_warning is None


def test_an_unknown_base_is_refused_by_name() -> None:
    recipe, _ = load_recipe("export", "fusar-gpt-7b", ModelRecipe)
    with pytest.raises(RecipeError, match=r"Qwen/Qwen2\.5-VL-3B-Instruct"):
        shape_from_recipe(msgspec.structs.replace(recipe, base="Qwen/Qwen9"), "x")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(RecipeError, match="int8-fp16"):
        plan("cpu", "fusar-tiny", precision="fp8")  # type: ignore[arg-type]  # what a caller may get wrong


# For the builder ----------------------------------------------------------------------------------------------------


def test_graphs_at_hand_are_planned_with_their_files_sizes() -> None:
    graphs = default_graphs()
    planned = plan_graphs(graphs, spec_of("jetson-orin-nano-8gb", precision="int8", kv_dtype="float32"))
    assert planned is not None
    weights = ("vision weights", "decoder weights", "embedding")
    files = sum((graphs.path / name).stat().st_size for name in ("vision.onnx", "decoder.onnx"))
    assert sum(map(planned.memory.bytes_of, weights)) == files
    assert planned.memory.needed == pytest.approx(
        plan("jetson-orin-nano-8gb", "fusar-tiny", precision="int8").memory.needed, rel=0.02
    )


def test_graphs_without_room_are_refused() -> None:
    assert isinstance(require_room(default_graphs(), spec_of("jetson-orin-nano-8gb"), 4000 * MIB), Plan)
    with pytest.raises(DeviceError, match="may use 100 MiB"):
        require_room(default_graphs(), spec_of("jetson-orin-nano-8gb"), 100 * MIB)


def test_graphs_of_an_unknown_recipe_have_no_plan() -> None:
    graphs = default_graphs()
    other = replace(graphs, settings=msgspec.structs.replace(graphs.settings, name="elsewhere"))
    assert require_room(other, spec_of("h200")) is None


# The verb -----------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fusar-edge", *words])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_the_verb_shows_tables_and_ends_with_one_json_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        monkeypatch, capsys, "plan", "jetson-orin-nx-16gb", "--model", "fusar-gpt-3b", "--precision", "int8"
    )
    record = json.loads(out)
    assert code == 0
    assert record["fits"] is True
    assert record["builds"] is False
    assert record["measured"] is False
    assert record["needed_mib"] == pytest.approx(sum(record["memory_mib"].values()), abs=1)
    assert "KV cache" in err
    assert "not measured" in err
    assert "building takes" in err


def test_a_refusal_shows_the_table_too_and_ends_with_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, "plan", "jetson-orin-nano-8gb", "--model", "fusar-gpt-7b")
    assert (code, out) == (2, "")
    assert "does not fit" in err
    assert "decoder weights" in err
    assert "What would fit" in err


def test_planning_imports_nothing_of_the_workshop() -> None:
    code = (
        "import sys; from fusar_edge.engines.planner import plan; from fusar_edge.engines import plan_table;"
        "plan_table.plan_record(plan('h200', 'fusar-gpt-7b'));"
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'rasterio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_token_counts_of_the_estimate_are_those_of_the_prompts() -> None:
    from fusar_edge.runtime.bundle import MAX_NEW_TOKENS, TOKENIZER, Prompts
    from fusar_edge.runtime.tokenizer import Tokenizer

    tokenizer, prompts = Tokenizer(DEFAULT / TOKENIZER), Prompts()
    template = len(tokenizer.encode(prompts.before_image)) + len(tokenizer.encode(prompts.after_image))
    after = len(tokenizer.encode(prompts.after_question))
    questions = sorted(len(tokenizer.encode_plain(text)) + after for text in prompts.tasks.values())
    assert template == planner.PREFIX_TEXT
    assert questions[len(questions) // 2] == planner.QUESTION
    assert (MAX_NEW_TOKENS["count"], MAX_NEW_TOKENS["caption"]) == (planner.SHORT_ANSWER, planner.CAPTION)

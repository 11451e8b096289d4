"""The roofline against hand calculations and against what others published; the document's tables are its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fusar_edge.engines.device_tables import TABLES, with_tables
from fusar_edge.engines.memory import decoder_weights, weight_format
from fusar_edge.engines.planner import plan
from fusar_edge.engines.published import PEAK, ROWS, compared, fitted, predicted_ms
from fusar_edge.engines.roofline import FITTED, Efficiency, Work, arithmetic_of, decoder_work, seconds, vision_work
from fusar_edge.engines.shapes import ModelShape, shape_from_recipe
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.specs import EngineSpec, HardwareSpec, ModelRecipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "devices.md"
INT8 = weight_format("int8", ["decoder.layers.*.mlp.down_proj"])
GPU = HardwareSpec(
    memory_mib=1000,
    bandwidth_gb_s=100.0,
    int8_tops=40.0,
    fp16_tflops=20.0,
    power_mode="",
    gpu_clock_mhz=1,
    source="test",
)


def shape_of(name: str) -> ModelShape:
    return shape_from_recipe(load_recipe("export", name, ModelRecipe)[0], name)


def test_time_is_the_larger_of_arithmetic_and_traffic() -> None:
    shares = Efficiency(compute=0.5, bandwidth=0.8)
    assert seconds(Work(80e9, {"int8": 1e12}), GPU, shares) == pytest.approx(1.0)
    assert seconds(Work(0, {"int8": 10e12}), GPU, shares) == pytest.approx(1.0)


def test_types_that_are_mixed_in_one_graph_add_up() -> None:
    work = Work(0, {"int8": 10e12, "float16": 5e12, "float32": 2.5e12})
    assert seconds(work, GPU, PEAK) == pytest.approx(1.5)


def test_decode_reads_every_weight_of_the_decoder_and_the_cache_once() -> None:
    shape = shape_of("fusar-gpt-7b")
    work = decoder_work(shape, INT8, replace(arithmetic_of(INT8), fused=True), 1, 999, cache_bytes=2)
    assert work.bytes == decoder_weights(shape, INT8) + 1000 * 28 * 2 * 4 * 128 * 2


def test_a_decode_step_multiplies_every_weight_once() -> None:
    shape = shape_of("fusar-gpt-7b")
    work = decoder_work(shape, INT8, arithmetic_of(INT8), 1, 0, cache_bytes=4)
    per_layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    attention = 2 * 28 * 28 * 128
    assert sum(work.macs.values()) == 28 * per_layer + 3584 * 152064 + attention
    assert work.macs["float32"] == 28 * 3584 * 18944 + attention


def test_prefill_multiplies_the_head_for_the_last_token_alone() -> None:
    shape = shape_of("fusar-gpt-3b")
    one, ten = (decoder_work(shape, INT8, arithmetic_of(INT8), new, 0, 4).macs["int8"] for new in (1, 10))
    head = 2048 * 151936
    assert ten - head == 10 * (one - head)


def test_a_model_with_a_tied_head_reads_it_in_decode_though_it_is_stored_with_the_embedding() -> None:
    shape, half = shape_of("fusar-gpt-3b"), weight_format("fp16", ())
    kinds = replace(arithmetic_of(half), fused=True)
    read = decoder_work(shape, half, kinds, 1, 0, cache_bytes=2).bytes
    assert read > decoder_weights(shape, half) + 2 * 2048 * 151936


def test_vision_macs_are_those_of_the_tower_the_merger_and_tlm() -> None:
    shape = shape_of("fusar-gpt-7b")
    work = vision_work(shape, INT8, arithmetic_of(INT8))
    block = 4 * 1280 * 1280 + 3 * 1280 * 3420
    tower = 1296 * (196 * 1280 + 32 * block) + 2 * 1280 * (4 * 1296**2 + 28 * 272**2)
    merger = 324 * (5120 * 5120 + 5120 * 3584)
    tlm = 324 * (64 * 14336 + 14336 * 7168) + 324 * 324 * (1296 + 7168)
    assert sum(work.macs.values()) == tower + merger + tlm


def test_images_of_a_batch_share_the_weights() -> None:
    shape = shape_of("fusar-tiny")
    one, four = (vision_work(shape, INT8, arithmetic_of(INT8), batch) for batch in (1, 4))
    assert four.macs["int8"] == 4 * one.macs["int8"]
    assert four.bytes < 4 * one.bytes


def test_the_shares_in_use_are_the_fitted_ones() -> None:
    assert FITTED.compute == pytest.approx(fitted().compute, abs=0.006)
    assert FITTED.bandwidth == pytest.approx(fitted().bandwidth, abs=0.006)


def test_the_fit_leaves_no_bias_in_either_phase() -> None:
    for phases in (("vision", "prefill"), ("decode",)):
        product = 1.0
        for found in compared():
            if found.row.phase in phases:
                product *= 1 + found.error
        assert product == pytest.approx(1, rel=1e-6)


def test_no_published_figure_beats_the_peak() -> None:
    assert all(predicted_ms(row, PEAK) < row.published_ms for row in ROWS)


def test_leaving_a_row_out_makes_its_prediction_worse() -> None:
    assert all(abs(found.error_left_out) >= abs(found.error) for found in compared())


def test_errors_are_what_the_document_says_at_most() -> None:
    assert max(abs(found.error) for found in compared()) < 0.34
    assert max(abs(found.error_left_out) for found in compared()) < 0.37


def test_less_precision_is_less_time_and_a_larger_model_is_more() -> None:
    def tile(model: str, precision: str) -> float:
        times = plan("jetson-agx-orin-64gb", model, precision=precision).times  # type: ignore[arg-type]  # a literal
        assert times is not None
        return times.tile_ms

    assert tile("fusar-gpt-7b", "int8-fp16") < tile("fusar-gpt-7b", "int8") < tile("fusar-gpt-7b", "fp32")
    assert tile("fusar-gpt-3b", "int8") < tile("fusar-gpt-7b", "int8")


def test_a_device_without_rates_has_no_times() -> None:
    assert plan("cpu", "fusar-tiny").times is None


def test_the_document_s_tables_are_computed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in TABLES:
        assert f"<!-- table {name} -->" in text
    assert with_tables(text) == text, "run: python -m fusar_edge.engines.device_tables docs/devices.md"


def test_the_document_has_every_spec_with_its_status() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in recipe_names("engines"):
        spec, _ = load_recipe("engines", name, EngineSpec)
        capability = spec.compute_capability or "-"
        assert f"| `{name}` | {capability} | {spec.status} |" in text

"""Device specs: what they may say, and that what they say agrees with itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusar_edge.errors import RecipeError
from fusar_edge.recipes import load_recipe, recipe_names
from fusar_edge.specs import EngineSpec, HardwareSpec

SPECS = {name: load_recipe("engines", name, EngineSpec)[0] for name in recipe_names("engines")}
GPUS = [name for name, spec in SPECS.items() if spec.engine == "tensorrt"]


def hardware(name: str) -> HardwareSpec:
    found = SPECS[name].hardware
    assert found is not None
    return found


def test_the_devices_of_the_project_are_on_the_shelf() -> None:
    orins = {"jetson-orin-nano-8gb", "jetson-orin-nx-16gb", "jetson-agx-orin-64gb"}
    assert set(SPECS) == {"cpu", "h200", "jetson-thor", *orins}
    assert {SPECS[name].compute_capability for name in orins} == {"8.7"}


def test_nothing_is_claimed_for_a_gpu() -> None:
    assert SPECS["cpu"].status == "built"
    assert {SPECS[name].status for name in GPUS} == {"untested"}


@pytest.mark.parametrize("name", GPUS)
def test_rates_are_dense_so_int8_is_twice_fp16_and_never_the_sparse_figure(name: str) -> None:
    assert hardware(name).int8_tops == pytest.approx(2 * hardware(name).fp16_tflops, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tensor_cores"), [("jetson-orin-nano-8gb", 32), ("jetson-orin-nx-16gb", 32), ("jetson-agx-orin-64gb", 64)]
)
def test_orin_rates_are_1024_int8_operations_a_clock_and_tensor_core(name: str, tensor_cores: int) -> None:
    expected = tensor_cores * 1024 * hardware(name).gpu_clock_mhz * 1e6 / 1e12
    assert hardware(name).int8_tops == pytest.approx(expected, rel=0.01)


def test_the_orin_nano_rate_scales_from_the_data_sheet_s_20_dense_tops_at_625_mhz() -> None:
    assert hardware("jetson-orin-nano-8gb").int8_tops == pytest.approx(20 * 1020 / 625, rel=0.03)


def test_a_spec_written_before_these_keys_still_loads() -> None:
    spec = EngineSpec(name="old", engine="onnxruntime", status="built", memory_mib=1024)
    assert (spec.vision_batch, spec.prefill_tokens, spec.workspace_mib, spec.kv_dtype) == (1, 512, 0, "float32")
    assert spec.compute_capability == ""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('compute_capability = "8.7"', 'compute_capability = "sm_87"', "compute_capability"),
        ('compute_capability = "8.7"', "", "compute_capability"),
        ("vision_batch = 1", "vision_batch = 9", "vision_batch"),
        ("vision_batch = 1", "vision_batch = 0", "vision_batch"),
        ('precision = "int8-fp16"', 'precision = "fp8"', "precision"),
        ('kv_dtype = "float16"', 'kv_dtype = "int8"', "kv_dtype"),
        ("memory_mib = 14000", "memory_mib = 16000", "more than the device has"),
        ("cache_tokens = 1024", "cache_tokens = 256", "do not fit the KV cache"),
        ("bandwidth_gb_s = 102.4", "bandwidth_gb_s = 0.0", "bandwidth_gb_s"),
        ("[hardware]", "[hardware]\ncolour = 1", "colour"),
        ('engine = "tensorrt"', 'engine = "onnxruntime"', "leave `compute_capability` out"),
        ("latency_goal_ms = 1000.0", "latency_goal_ms = -1.0", "latency_goal_ms"),
    ],
)
def test_a_wrong_device_is_refused_with_its_key(tmp_path: Path, before: str, after: str, message: str) -> None:
    _, text = load_recipe("engines", "jetson-orin-nx-16gb", EngineSpec)
    assert before in text
    path = tmp_path / "nx.toml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(RecipeError, match=message):
        load_recipe("engines", str(path), EngineSpec)


def test_a_gpu_without_hardware_is_refused(tmp_path: Path) -> None:
    _, text = load_recipe("engines", "h200", EngineSpec)
    path = tmp_path / "h200.toml"
    path.write_text(text.split("[hardware]")[0])
    with pytest.raises(RecipeError, match=r"\[hardware\]"):
        load_recipe("engines", str(path), EngineSpec)

"""`build` for a GPU spec, from graphs to answers, on a fake TensorRT; and what it refuses before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_graphs
from fake_builder import FakeTensorrtWithBuilder

from fusar_edge.engines import plans
from fusar_edge.engines.build import build
from fusar_edge.errors import BundleError, DeviceError, GateError, InputError
from fusar_edge.manifest import Manifest, sha256_file
from fusar_edge.recipes import recipe_path
from fusar_edge.runtime import trt
from fusar_edge.runtime.bundle import PlanFacts, open_bundle, seal_bundle
from fusar_edge.runtime.device_numpy import NumpyDevice
from fusar_edge.runtime.session import Session
from fusar_edge.runtime.trt_api import DeviceFacts

ORIN = DeviceFacts("Orin", "8.7", 64 << 30, 60 << 30, "13.2")
FILES = {
    "vision.plan",
    "decoder.plan",
    "vision.layers.json",
    "decoder.layers.json",
    "tokenizer.json",
    "prompts.json",
    "radiometry.json",
    "calibration.jsonl",
}


class Machine:
    """A Jetson made of NumPy. `facts` and `trt` may be changed."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.facts, self.trt, self.folder, self.opened = ORIN, FakeTensorrtWithBuilder(), folder, 0
        for module in (plans, trt):
            patch.setattr(module, "open_tensorrt", lambda: self.trt)
            patch.setattr(module, "device_facts", lambda: self.facts)
        patch.setattr(trt, "open_device", self.device)

    def device(self, kind: str = "auto") -> NumpyDevice:
        self.opened += 1
        self.trt.device = NumpyDevice()
        return self.trt.device

    def spec(self, **changes: Any) -> str:
        """jetson-agx-orin-64gb with INT8 and FP32 alone, and other values."""
        lines = recipe_path("engines", "jetson-agx-orin-64gb").read_text().splitlines()
        for name, value in ({"precision": '"int8"', "kv_dtype": '"float32"'} | changes).items():
            lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in lines]
        (self.folder / "spec.toml").write_text("\n".join(lines))
        return str(self.folder / "spec.toml")

    def build(self, source: Path | None = None, spec: str = "", **options: Any) -> Manifest:
        given = {"timing_cache": self.folder / "timing", "waive": "random weights"} | options
        return build(spec or self.spec(), source or tiny_graphs.int8_folder(), self.folder / "bundle", **given)

    def wrote_nothing(self) -> bool:
        return {p.name for p in self.folder.iterdir()} <= {"spec.toml", "graphs", "timing"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_bundle_of_plans_holds_no_graphs_and_says_what_it_was_built_for(machine: Machine) -> None:
    source = tiny_graphs.int8_folder()
    manifest = machine.build(spec=machine.spec(vision_batch=4, workspace_mib=100))
    bundle = open_bundle(machine.folder / "bundle")
    assert set(manifest.files) == FILES
    assert bundle.settings.engine == "tensorrt"
    assert bundle.settings.plan == PlanFacts(
        tensorrt="10.16.1.11",
        compute_capability="8.7",
        gpu="Orin",
        prefill_tokens=512,
        vision_batch=4,
        kv_dtype="float32",
    )
    assert manifest.inputs["decoder.onnx"] == sha256_file(source / "decoder.onnx")
    assert machine.trt.workspaces == [100 << 20, 100 << 20]
    figures = manifest.figures["plans"]["vision.plan"]
    assert (figures["layers"], figures["int8_layers"], figures["timings_reused"]) == (2, 1, False)
    assert figures["plan_bytes"] == (machine.folder / "bundle" / "vision.plan").stat().st_size


def test_it_answers_as_the_same_graphs_do_on_a_cpu(machine: Machine) -> None:
    machine.build()
    plain = recipe_path("engines", "cpu").read_text().replace('"fused"', '"plain"')
    (machine.folder / "plain.toml").write_text(plain)
    source = tiny_graphs.int8_folder()
    build(str(machine.folder / "plain.toml"), source, machine.folder / "cpu", waive="random weights")
    grey = np.random.default_rng(0).random((252, 252), np.float32)
    answers = []
    for name in ("bundle", "cpu"):
        session = Session(open_bundle(machine.folder / name), threads=1)
        session.look(grey)
        answers.append([session.ask(task).generation.ids for task in ("count", "grid")])
    assert answers[0] == answers[1]


def test_a_spec_with_a_half_precision_cache_builds_graphs_with_fp16_attention(machine: Machine) -> None:
    spec = machine.spec(kv_dtype='"float16"', precision='"int8-fp16"')
    manifest = machine.build(spec=spec)
    bundle = open_bundle(machine.folder / "bundle")
    assert bundle.settings.plan is not None
    assert bundle.settings.plan.kv_dtype == "float16"
    assert set(manifest.files) == FILES
    figures = manifest.figures["plans"]["decoder.plan"]
    assert figures["fp16_products"] == 2 * bundle.settings.layers
    session = Session(bundle, threads=1)
    session.look(np.zeros((252, 252), np.float32))
    assert session.ask("count").question


def test_fp16_linears_without_an_fp16_cache_are_refused(machine: Machine) -> None:
    with pytest.raises(InputError, match="its KV cache is float16, the spec says kv_dtype = 'float32'"):
        machine.build(spec=machine.spec(precision='"int8-fp16"'))
    assert machine.wrote_nothing()


def test_a_second_build_uses_the_timings_of_the_first(machine: Machine) -> None:
    machine.build()
    again = machine.build(force=True)
    assert [f["timings_reused"] for f in again.figures["plans"].values()] == [True, True]
    assert len(list((machine.folder / "timing").iterdir())) == 2


def test_task_metrics_are_those_of_the_plans(machine: Machine) -> None:
    manifest = machine.build(data=tiny_graphs.other_tiles(), reference=tiny_graphs.fp32_folder(), images=2)
    assert set(manifest.figures["tasks"]) == {"data", "data_sha256", "int8", "fp32"}
    assert machine.opened == 1, "the plans were opened to be asked, and not a second time to be checked"


def test_the_gate_runs_in_the_cache_that_the_spec_has(machine: Machine) -> None:
    """768 rows, as on an Orin Nano; graphs are told of 1,024."""
    given = {"data": tiny_graphs.other_tiles(), "reference": tiny_graphs.fp32_folder(), "images": 2}
    manifest = machine.build(spec=machine.spec(cache_tokens=768), **given)
    assert manifest.figures["gate"]["images"] == 2
    assert {check["name"] for check in manifest.figures["gate"]["checks"]} >= {"logits_kl", "count.parsed"}


def test_another_gpu_than_the_specs_is_refused(machine: Machine) -> None:
    machine.facts = DeviceFacts("NVIDIA H200", "9.0", 1 << 37, 1 << 37, "13.0")
    with pytest.raises(DeviceError, match=r"spec jetson-agx-orin-64gb is for compute capability 8\.7.*H200\) has 9\.0"):
        machine.build()
    assert machine.wrote_nothing()


def test_too_little_free_memory_is_refused_before_anything_is_built(machine: Machine) -> None:
    machine.facts = DeviceFacts("Orin", "8.7", 64 << 30, 100 << 20, "13.2")
    with pytest.raises(DeviceError, match=r"fusar-tiny .*does not fit jetson-agx-orin-64gb.*may use 100 MiB"):
        machine.build()
    machine.facts = DeviceFacts("Orin", "8.7", 64 << 30, 1 << 20, "13.2")
    machine.trt.refused = ("Add",)  # would be met if anything were parsed
    with pytest.raises(DeviceError):
        machine.build()
    assert machine.wrote_nothing()


def test_a_prefill_that_does_not_hold_an_image_is_refused(machine: Machine) -> None:
    with pytest.raises(InputError, match="prefill_tokens"):
        machine.build(spec=machine.spec(prefill_tokens=90))
    assert machine.wrote_nothing()


def test_a_node_that_tensorrt_does_not_know_is_named_and_leaves_no_bundle(machine: Machine) -> None:
    machine.trt.refused = ("Conv",)
    with pytest.raises(GateError, match=r"vision\.onnx: TensorRT 10\.16\.1\.11 refuses it: node vision\.patch_embed"):
        machine.build()
    assert machine.wrote_nothing()


def test_changed_weights_are_found_before_an_hour_is_spent_on_them(machine: Machine) -> None:
    source = machine.folder / "graphs"
    shutil.copytree(tiny_graphs.int8_folder(), source)
    with open(source / "decoder.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"decoder\.onnx was changed"):
        machine.build(source)
    assert machine.wrote_nothing()


def test_a_plan_without_its_facts_or_facts_without_a_plan_are_no_settings(machine: Machine) -> None:
    machine.build()
    bundle = open_bundle(machine.folder / "bundle")
    (machine.folder / "bundle" / "decoder.plan").unlink()
    with pytest.raises(BundleError, match=r"lacks decoder\.plan"):
        seal_bundle(machine.folder / "bundle", bundle.settings)
    with pytest.raises(ValueError, match="`plan` belongs to the engine `tensorrt`"):
        type(bundle.settings)(
            **{name: getattr(bundle.settings, name) for name in bundle.settings.__struct_fields__ if name != "plan"}
        )

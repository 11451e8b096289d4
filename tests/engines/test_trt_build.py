"""The builder, on TensorRT-RTX where something is built, and on a made-up configuration where nothing is."""

from __future__ import annotations

import importlib.util
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusar_edge.engines.compile_gate import BINDINGS, COMPUTE_CAPABILITY, LIBRARIES, tensorrt_rtx
from fusar_edge.engines.layers import layer_counts
from fusar_edge.engines.monitor import Monitor
from fusar_edge.engines.timing_cache import TimingCache, default_folder, timing_cache
from fusar_edge.engines.trt_build import PlanResult, build_plan, weak_types
from fusar_edge.errors import DeviceError, GateError, InputError
from fusar_edge.runtime.trt_api import DeviceFacts

ABSENT = [name for name in (LIBRARIES, BINDINGS) if importlib.util.find_spec(name) is None]
builds = pytest.mark.skipif(
    bool(ABSENT) and os.environ.get("CI") != "true", reason=f"{', '.join(ABSENT)} not installed: fusar-edge[test]"
)
ORIN = DeviceFacts("Orin (nvgpu)", "8.7", 64 << 30, 50 << 30, "13.2")


def linear(folder: Path, external: bool = False) -> Path:
    """x [B, 32] @ weight [32, 16], the weight beside the graph where it is `external`."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32), "weight")
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], "linear")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", w]) for n, w in (("x", 32), ("y", 16)))
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    options = {"location": "g.onnx.data", "size_threshold": 0} if external else {}
    onnx.save_model(model, folder / "g.onnx", save_as_external_data=external, **options)
    return folder / "g.onnx"


def built(graph: Path, **options: Any) -> PlanResult:
    trt = tensorrt_rtx()

    def ampere(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, COMPUTE_CAPABILITY), 0)

    profiles = [{"x": ((1, 32), (4, 32), (8, 32))}]
    return build_plan(graph, profiles, graph.with_suffix(".plan"), trt=trt, prepare=ampere, **options)


@builds
def test_a_plan_is_written_whole_with_its_size_and_layers(tmp_path: Path) -> None:
    result = built(linear(tmp_path), workspace_mib=64)
    assert (tmp_path / "g.plan").stat().st_size == result.plan_bytes
    assert result.layers >= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.onnx", "g.plan"]


@builds
def test_weights_beside_the_graph_are_found(tmp_path: Path) -> None:
    assert built(linear(tmp_path, external=True)).plan_bytes > 0
    (tmp_path / "g.onnx.data").unlink()
    (tmp_path / "g.plan").unlink()
    with pytest.raises(GateError, match=r"g\.onnx: TensorRT .* refuses it: .*weight"):
        built(tmp_path / "g.onnx")
    assert not (tmp_path / "g.plan").exists()


@builds
def test_ctrl_c_stops_a_build_and_leaves_no_plan(tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(done: int, total: int, label: str) -> None:
        seen.append(label)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)

    graph, handler = linear(tmp_path), signal.getsignal(signal.SIGINT)
    uninterrupted: list[int] = []
    built(graph, progress=lambda done, total, label: uninterrupted.append(done))
    (tmp_path / "g.plan").unlink()
    with pytest.raises(KeyboardInterrupt):
        built(graph, progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]
    assert len(seen) < len(uninterrupted) / 2
    assert signal.getsignal(signal.SIGINT) is handler


@builds
def test_an_error_of_the_progress_callback_comes_back_as_it_is(tmp_path: Path) -> None:
    def progress(done: int, total: int, label: str) -> None:
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        built(linear(tmp_path), progress=progress)
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]


@builds
def test_a_build_in_another_thread_is_left_to_end(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(built, linear(tmp_path)).result().plan_bytes > 0


@builds
def test_progress_counts_up_to_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    built(linear(tmp_path), progress=lambda *step: seen.append(step))
    assert len(seen) > 5
    assert all(0 <= done <= total for done, total, _ in seen)
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert all(label.startswith("g: ") for _, _, label in seen)


@builds
def test_a_cache_of_another_type_than_the_spec_says_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["past"], ["new"], "relu")
    past, new = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["P", 4]) for n in ("past", "new"))
    model = helper.make_model(
        helper.make_graph([node], "g", [past], [new]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(InputError, match=r"g\.onnx: its KV cache is float32, the spec says kv_dtype = 'float16'"):
        built(tmp_path / "g.onnx", kv_dtype="float16")


class Config:
    """A builder configuration of a TensorRT that refuses some caches."""

    def __init__(self, refused: bytes = b"", none: bytes = b"", mismatch: bytes = b"") -> None:
        self.none, self.mismatch, self.held = none, mismatch, b""

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data and data == self.none else SimpleNamespace(data=data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.data and cache.data == self.mismatch:
            return False
        self.held = cache.data
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.held + b"+")


@pytest.mark.parametrize("refusal", ["none", "mismatch"])
def test_timings_of_another_gpu_are_not_used(tmp_path: Path, refusal: str) -> None:
    cache = TimingCache(tmp_path / "t")
    cache.path.write_bytes(b"other")
    with cache.attached(Config(**{refusal: b"other"})) as warm:
        assert warm is False
    assert cache.path.read_bytes() == b"+"
    with cache.attached(Config()) as warm:
        assert warm is True
    assert cache.path.read_bytes() == b"++"


def test_a_failed_build_keeps_the_timings_of_the_last_one(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "t")
    cache.path.write_bytes(b"good")
    with pytest.raises(GateError), cache.attached(Config()):
        raise GateError("cannot build")
    assert cache.path.read_bytes() == b"good"


def test_each_gpu_version_and_graph_has_timings_of_its_own(tmp_path: Path) -> None:
    other = DeviceFacts("Orin (nvgpu)", "8.9", 1, 1, "13.2")
    paths = {
        timing_cache(tmp_path, facts, version, graph).path
        for facts in (ORIN, other)
        for version in ("10.16.1", "11.4.0")
        for graph in ("a", "b")
    }
    assert len(paths) == 8
    assert all(p.parent == tmp_path and p.name.startswith("orin-nvgpu-sm8.") for p in paths)


def test_timings_live_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "fusar-edge" / "timing"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_folder() == Path.home() / ".cache" / "fusar-edge" / "timing"


def test_a_version_that_chooses_types_may_choose_those_of_the_graph_alone() -> None:
    trt = SimpleNamespace(
        LayerType=SimpleNamespace(QUANTIZE="q", DEQUANTIZE="dq"), DataType=SimpleNamespace(HALF="half")
    )

    def network(*layers: tuple[str, str]) -> Any:
        made = [
            SimpleNamespace(type=kind, num_outputs=1, get_output=lambda i, t=dtype: SimpleNamespace(dtype=t))
            for kind, dtype in layers
        ]
        return SimpleNamespace(num_layers=len(made), get_layer=lambda i: made[i])

    assert weak_types(trt, network(("matmul", "float"))) == []
    assert weak_types(trt, network(("matmul", "float"), ("dq", "float"))) == ["INT8"]
    assert weak_types(trt, network(("q", "int8"), ("cast", "half"))) == ["INT8", "FP16"]


def test_a_phase_inside_another_does_not_count_twice() -> None:
    seen: list[tuple[int, int]] = []
    monitor = Monitor("g", lambda done, total, label: seen.append((done, total)))
    monitor.phase_start("build", None, 2)
    monitor.phase_start("tactics", "build", 100)
    for step in range(100):
        assert monitor.step_complete("tactics", step)
    assert seen[-1] == (0, 2)
    monitor.phase_finish("tactics")
    monitor.step_complete("build", 0)
    monitor.step_complete("build", 1)
    assert seen[-1] == (2, 2)
    assert {total for _, total in seen} == {2}


def test_layers_that_read_int8_are_counted() -> None:
    report = """{"Layers": [
        {"Name": "a", "Inputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}]},
        {"Name": "b", "Inputs": [{"Name": "x", "Format/Datatype": "Int8"}, {"Name": "y", "Format/Datatype": "Float"}]},
        {"Name": "c", "Inputs": [{"Name": "x", "Format/Datatype": "Half"}]},
        {"Name": "d", "Inputs": []}], "Bindings": ["x"]}"""
    assert layer_counts(report) == {"layers": 4, "int8_layers": 2}
    assert layer_counts('{"Layers": ["a", "b"]}') == {"layers": 2, "int8_layers": 0}
    assert layer_counts("no report") == {}


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    config = Config()
    config.create_timing_cache = lambda data: None  # type: ignore[method-assign]  # a TensorRT out of memory
    with pytest.raises(DeviceError, match="a timing cache"), TimingCache(tmp_path / "t").attached(config):
        pass

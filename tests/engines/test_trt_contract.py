"""Every name of TensorRT that the code uses exists in the real bindings of 8.6, 10.3, 10.16 and 11.4, or is guarded.

The bindings are NVIDIA's wheels over stub libraries (trt_stubs/): names, classes and signatures are real, nothing runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from trt_stubs.bindings import ROOT, WHEELS, asked

BUILDING = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
}
RUNNING = {"runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext"}
SOURCES = {
    "runtime/trt_api.py": {"error": "ParserError"},
    "runtime/trt.py": {},
    "runtime/trt_engine.py": RUNNING | {"made": "IExecutionContext", "strategy": "ExecutionContextAllocationStrategy"},
    "engines/trt_build.py": BUILDING | {"layer": "ILayer", "tensor": "ITensor"},
    "engines/monitor.py": BUILDING,
    "engines/profiles.py": BUILDING | {"made": "IOptimizationProfile"},
    "engines/timing_cache.py": BUILDING | {"filled": "ITimingCache"},
    "engines/layers.py": RUNNING | {"inspector": "EngineInspector"},
    "engines/plans.py": {},
    "engines/compile_gate.py": {},
}
"""File -> names that hold TensorRT's objects in it, and their classes; `self._engine` counts as `engine`."""

RTX_ONLY = {"ComputeCapability"}
"""What the compile gate alone uses, with TensorRT-RTX; test_compile_gate.py runs it."""

GUARDED = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": {"8.6", "10.3", "10.16"},
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": {"10.3", "10.16", "11.4"},
    "BuilderFlag.INT8": {"8.6", "10.3", "10.16"},
    "BuilderFlag.FP16": {"8.6", "10.3", "10.16"},
    "IProgressMonitor": {"10.3", "10.16", "11.4"},
    "IProgressMonitor.__init__": {"10.3", "10.16", "11.4"},
    "IBuilderConfig.progress_monitor": {"10.3", "10.16", "11.4"},
    "ParserError.node_name": {"10.3", "10.16", "11.4"},
    "ParserError.node_operator": {"10.3", "10.16", "11.4"},
    "ExecutionContextAllocationStrategy": {"10.3", "10.16", "11.4"},
    "ExecutionContextAllocationStrategy.USER_MANAGED": {"10.3", "10.16", "11.4"},
    "ICudaEngine.create_execution_context_without_device_memory": {"8.6", "10.3", "10.16"},
    "ICudaEngine.device_memory_size": {"8.6", "10.3", "10.16"},
    "ICudaEngine.device_memory_size_v2": {"10.3", "10.16", "11.4"},
    "IExecutionContext.set_device_memory": {"10.3", "10.16", "11.4"},
}
"""Names behind a getattr or a hasattr -> exactly the versions that have them."""


def used_names(path: Path, objects: dict[str, str]) -> Iterator[str]:
    """`trt.A.B` as A.B, `builder.x` as Builder.x; what is asked for with hasattr or getattr and a constant too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield from dotted(node.value, node.attr, objects)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            constant = node.args[1]
            if isinstance(constant, ast.Constant):
                yield from dotted(node.args[0], constant.value, objects)


def dotted(holder: ast.expr, name: str, objects: dict[str, str]) -> Iterator[str]:
    parts = [name]
    while isinstance(holder, ast.Attribute):
        parts.insert(0, holder.attr.lstrip("_"))
        holder = holder.value
    parts.insert(0, holder.id.lstrip("_") if isinstance(holder, ast.Name) else "")
    if "trt" in parts[:-1]:
        yield ".".join(parts[parts.index("trt") + 1 :])
    elif parts[-2] in objects:
        yield f"{objects[parts[-2]]}.{name}"


def names() -> set[str]:
    found: set[str] = set()
    for path, objects in SOURCES.items():
        found |= set(used_names(ROOT / "fusar_edge" / path, objects))
    return (found | set(GUARDED)) - RTX_ONLY - {"__version__"}


def test_the_walk_finds_what_the_builder_uses() -> None:
    found = names()
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse_from_file",
        "IBuilderConfig.set_timing_cache",
    } <= found
    assert {"ProfilingVerbosity.DETAILED", "Runtime.deserialize_cuda_engine", "LayerType.QUANTIZE"} <= found
    assert len(found) > 40


@pytest.mark.parametrize("version", WHEELS)
def test_every_name_in_use_exists_or_is_guarded(version: str) -> None:
    exist = asked(version, {"names": sorted(names())})["exist"]
    missing = {name for name, there in exist.items() if not there}
    assert missing == {name for name, versions in GUARDED.items() if version not in versions}


@pytest.mark.parametrize("version", WHEELS)
def test_guards_choose_what_the_version_has(version: str) -> None:
    answers = asked(version, {"names": []})
    assert ".".join(map(str, answers["version"])) == version
    assert answers["strongly_typed"] is (version != "8.6")
    # Bit 0 is EXPLICIT_BATCH up to 10; STRONGLY_TYPED is bit 1 there and moved to another number in 11.
    assert answers["network_flags"] == {"8.6": 0b01, "10.3": 0b11, "10.16": 0b11}.get(version, answers["network_flags"])
    assert answers["network_flags"] > 0


@pytest.mark.parametrize("version", WHEELS)
def test_a_factory_that_returns_nothing_is_an_error_that_says_what(version: str) -> None:
    answers = asked(version, {"names": []})
    assert answers["builder"].startswith("TensorRT could not make a thing")
    assert answers["runtime"].startswith("TensorRT could not make a thing")


@pytest.mark.parametrize("version", WHEELS)
def test_the_listener_keeps_errors_and_warnings_alone(version: str) -> None:
    assert asked(version, {"names": []})["logged"] == {
        "said": ["INTERNAL_ERROR", "ERROR", "WARNING"],
        "errors": ["INTERNAL_ERROR", "ERROR"],
    }


@pytest.mark.parametrize("version", WHEELS)
def test_progress_is_shown_step_by_step_where_there_are_monitors(version: str) -> None:
    shown = asked(version, {"names": []})["monitored"]
    if version == "8.6":
        assert shown == [[0, 1, "vision"]]
    else:
        assert shown[0] == [0, 2, "vision: build"]
        assert shown[-1] == [1, 2, "vision: build"]

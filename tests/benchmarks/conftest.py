"""Every benchmark here is timed by the clock of its kernel (kernel_clock.py); see README.md for the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_clock import CLOCKS

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel(name): what its time is measured in: numbers (default), interpreter")


def clock_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("kernel")
    return str(marker.args[0]) if marker else "numbers"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.benchmark(timer=CLOCKS[clock_of(item)]))


@pytest.fixture(autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the kernel before and after; both stand beside the result."""
    if "benchmark" not in request.fixturenames:
        yield
        return
    clock, info = CLOCKS[clock_of(request.node)], request.getfixturevalue("benchmark").extra_info
    info["kernel"], info["kernel_ms"] = clock_of(request.node), round(clock.set(), 4)
    yield
    info["kernel_drift"] = round(clock.drift(), 3)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The device and what runs on it, without the name of the host."""
    from fusar_edge.manifest import package_versions

    for private in ("node", "release", "version"):
        machine_info.pop(private, None)
    machine_info.update(package_versions("fusar-edge", "onnxruntime", "numpy", "rasterio", "zarr"))
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {name: cpu.get(name) for name in ("brand_raw", "arch", "count", "l2_cache_size")}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """A baseline is small enough to be read: no single rounds, no author."""
    output_json.pop("commit_info", None)
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


def pytest_benchmark_compare_machine_info(config: pytest.Config, **_: Any) -> None:
    """Another machine is what the clock is for."""

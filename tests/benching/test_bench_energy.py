"""Energy from readings: closed forms, counters that wrap, and what is not measured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusar_edge.bench.observations import Observation
from fusar_edge.bench.power.energy import Sampler, Trace, energy_figures, module_rails, open_source
from fusar_edge.bench.power.ina import Ina
from fusar_edge.bench.power.nvml import Nvml
from fusar_edge.bench.power.rapl import Rapl
from fusar_edge.errors import DeviceError, InputError


def observation(part: str, unit: str, start: float, end: float, tokens: int = 0, **more: Any) -> Observation:
    ms = (end - start) * 1e3
    return Observation(scenario="single", part=part, unit_id=unit, ms=ms, at=end, tokens=tokens, **more)


def test_constant_power_is_watts_times_seconds() -> None:
    trace = Trace("x", "W", [0.0, 1.0, 2.5, 4.0], [{"VDD_IN": 10.0}] * 4)
    assert trace.spent(["VDD_IN"], 0.5, 3.5) == pytest.approx(30.0)


def test_a_ramp_of_power_integrates_to_its_area() -> None:
    times = np.linspace(0, 10, 101)
    trace = Trace("x", "W", list(times), [{"a": 2 * t, "b": 1.0} for t in times])
    assert trace.spent(["a"], 0, 10) == pytest.approx(100.0)
    assert trace.spent(["a", "b"], 2.0, 4.0) == pytest.approx(12.0 + 2.0)


def test_energy_counters_are_differences() -> None:
    trace = Trace("x", "J", [0.0, 1.0, 2.0], [{"GPU 0": 500.0}, {"GPU 0": 507.0}, {"GPU 0": 520.0}])
    assert trace.spent(["GPU 0"], 0.0, 1.5) == pytest.approx(7.0 + 6.5)


def test_what_the_readings_do_not_cover_has_no_energy() -> None:
    trace = Trace("x", "W", [1.0, 2.0], [{"a": 1.0}] * 2)
    assert trace.spent(["a"], 0.9, 1.5) is None
    assert trace.spent(["a"], 1.5, 2.1) is None
    assert Trace("x", "W", [], []).spent([], 0, 1) is None


def test_figures_are_of_tiles_answers_and_tokens_with_the_rail_named() -> None:
    watts = [5.0 if t < 10 else 15.0 for t in np.arange(0, 30.01, 0.1)]
    trace = Trace("x", "W", list(np.arange(0, 30.01, 0.1)), [{"VDD_IN": w, "VDD_SOC": w / 5} for w in watts])
    seen = []
    for i in range(4):
        start = 11.0 + 4 * i
        seen.append(observation("tile", f"tile {i}", start, start + 3))
        seen.append(observation("answer", f"tile {i}/caption", start + 1, start + 2))
        seen.append(observation("decode", f"tile {i}/caption", start + 1.2, start + 2, tokens=8))
    seen.append(observation("tile", "tile 9", 0.0, 5.0, warm_up=True))
    seen.append(observation("tile", "tile 8", 29.0, 33.0))
    figures = energy_figures(trace, seen, scenario="single", idle=(2.0, 6.0))
    assert figures.whole == ("VDD_IN",)
    assert figures.idle_w == pytest.approx(5.0)
    assert figures.mean_w == pytest.approx(15.0)
    assert figures.tile_j is not None
    assert figures.tile_j.value == pytest.approx(45.0)
    assert figures.answer_j["caption"].value == pytest.approx(15.0)
    assert figures.token_j is not None
    assert figures.token_j.value == pytest.approx(0.8 * 15 / 8)
    assert figures.rails_tile_j["VDD_SOC"] == pytest.approx(9.0)
    assert "1 of 5 tiles lie outside" in figures.notes[0]


def test_parts_that_are_short_beside_the_readings_have_no_figure() -> None:
    """A caption of 20 ms at 20 W between stages at 5 W, read every 100 ms: the truth, 0.4 J, cannot be known."""
    times = np.arange(0, 60, 0.1)
    watts = [20.0 if t % 0.12 > 0.1 else 5.0 for t in times]
    trace = Trace("x", "W", list(times), [{"VDD_IN": w} for w in watts])
    seen = []
    for i in range(400):
        start = 0.12 * i + 0.12
        seen.append(observation("tile", f"tile {i}", start, start + 0.12))
        seen.append(observation("answer", f"tile {i}/caption", start + 0.1, start + 0.12))
        seen.append(observation("decode", f"tile {i}/caption", start + 0.11, start + 0.12, tokens=4))
    figures = energy_figures(trace, seen, scenario="single")
    assert figures.tile_j is not None
    assert figures.tile_j.value == pytest.approx(0.1 * 5 + 0.02 * 20, rel=0.03)
    assert figures.answer_j == {}
    assert figures.token_j is None
    assert "no figure for caption, token" in figures.notes[0]


@pytest.mark.parametrize(
    ("rails", "whole"),
    [
        (["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ("VDD_IN",)),
        (["package-0", "package-0/core", "package-0/dram", "psys"], ("package-0", "package-0/dram")),
        (["GPU 0", "GPU 1"], ("GPU 0", "GPU 1")),
    ],
)
def test_parts_of_a_rail_are_not_counted_twice(rails: list[str], whole: tuple[str, ...]) -> None:
    assert module_rails(rails) == whole


def test_ina_monitors_of_orin_and_thor_are_read(tmp_path: Path) -> None:
    files = {
        "hwmon0/name": "ina3221",
        "hwmon0/in1_label": "VDD_IN",
        "hwmon0/in1_input": "19840",
        "hwmon0/curr1_input": "250",
        "hwmon0/in2_label": "NC",
        "hwmon0/in2_input": "1",
        "hwmon0/curr2_input": "1",
        "hwmon0/in7_label": "sum of shunt voltages",
        "hwmon0/in7_input": "1",
        "hwmon0/curr7_input": "1",
        "hwmon1/name": "ina238",
        "hwmon1/power1_input": "17650000",
        "hwmon2/name": "coretemp",
        "hwmon2/power1_input": "1",
    }
    for name, text in files.items():
        path = tmp_path / "class/hwmon" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert Ina(tmp_path).read() == pytest.approx({"VDD_IN": 4.96, "VIN": 17.65})
    with pytest.raises(DeviceError):
        Ina(tmp_path / "elsewhere")


def rapl_domain(sys: Path, folder: str, name: str, energy: int) -> Path:
    path = sys / "class/powercap" / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text("9999999\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    return path


def test_rapl_counters_are_followed_through_their_wrap(tmp_path: Path) -> None:
    package = rapl_domain(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    memory = rapl_domain(tmp_path, "intel-rapl:0:1", "dram", 100)
    source = Rapl(tmp_path)
    assert source.rails == ("package-0", "package-0/dram")
    (package / "energy_uj").write_text("500000\n")
    (memory / "energy_uj").write_text("2000100\n")
    assert source.read() == pytest.approx({"package-0": 1.5, "package-0/dram": 2.0})


def test_rapl_that_only_root_may_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl_domain(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refused(path: Path, *arguments: Any, **more: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(DeviceError, match="root"):
        Rapl(tmp_path)


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool) -> None:
        self.counts = counts

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        return 70_500

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        if not self.counts:
            raise self.NVMLError("not supported")
        return 123_456


@pytest.mark.parametrize(("counts", "unit", "value"), [(True, "J", 123.456), (False, "W", 70.5)])
def test_a_gpu_counts_energy_where_it_can_and_says_its_power_where_not(counts: bool, unit: str, value: float) -> None:
    source = Nvml(FakeNvml(counts))
    assert (source.unit, source.read()) == (unit, {"GPU 0": value})


class Steady:
    """Draws 8 W; tells when it was read often enough."""

    name, unit, rails = "steady", "W", ("VDD_IN",)

    def __init__(self, fails_after: int = 10**9) -> None:
        self.reads, self.closed, self.fails_after = 0, False, fails_after
        self.enough = threading.Event()

    def read(self) -> dict[str, float]:
        self.reads += 1
        if self.reads >= 5:
            self.enough.set()
        if self.reads > self.fails_after:
            raise OSError("gone")
        return {"VDD_IN": 8.0}

    def close(self) -> None:
        self.closed = True


def test_a_sampler_reads_from_first_to_last_and_closes_its_source(tmp_path: Path) -> None:
    source = Steady()
    with Sampler(source, interval_s=0.001) as sampler:
        assert source.enough.wait(10)
    trace = sampler.trace()
    assert source.closed
    assert trace.spent(["VDD_IN"], sampler.times[0], sampler.times[-1]) == pytest.approx(
        8.0 * (sampler.times[-1] - sampler.times[0])
    )
    sampler.write(tmp_path / "power.jsonl")
    assert len((tmp_path / "power.jsonl").read_text().splitlines()) == len(sampler.times)


def test_a_source_that_goes_away_leaves_what_was_read() -> None:
    source = Steady(fails_after=2)
    with Sampler(source, interval_s=0.001) as sampler:
        assert source.enough.wait(10)
    assert len(sampler.times) == 2
    assert "steady stopped answering" in sampler.problem


def test_no_rail_no_number() -> None:
    assert open_source("none") == (None, "power was not asked for (--power none)")
    with pytest.raises(InputError, match="allowed are"):
        open_source("wattmeter")

"""Conditions: what a device's files say, and what keeps numbers from being published."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusar_edge.bench.conditions import Conditions, ConditionsWatch, disturbances, reasons_against
from fusar_edge.runtime.bundle import DEFAULT, Bundle, open_bundle

GOOD = {
    "device": "NVIDIA Jetson Orin Nano Developer Kit",
    "soc": "tegra234",
    "gpu_clock_mhz": (1020.0, 1020.0),
    "power_mode": "MAXN_SUPER",
    "governors": ("performance",),
    "clock_mhz": (1728.0, 1728.0),
    "temperature_c": (48.0, 61.0),
    "throttle_events": 0,
    "virtual": "",
    "others_share": 0.01,
    "limited_ms": 0.0,
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return open_bundle("default")


def board(root: Path, **changes: str) -> Path:
    """Files of an Orin Nano, as far as they are read."""
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 41062509\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1728000\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
        "sys/class/thermal/thermal_zone0/temp": "51218\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/class/hwmon/hwmon1/oc1_event_cnt": "3\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 5\nthrottled_usec 1000\n",
        **changes,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_steady_board_may_be_published() -> None:
    assert reasons_against(Conditions(**GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"governors": ()}, "governor of the processor unknown"),
        ({"governors": ("performance", "schedutil")}, "is performance, schedutil: set performance"),
        ({"clock_mhz": None}, "clocks of the processor unknown"),
        ({"clock_mhz": (729.0, 1728.0)}, "between 729 and 1728 MHz"),
        ({"temperature_c": None}, "temperatures unknown"),
        ({"temperature_c": (60.0, 93.5)}, "94 C was reached"),
        ({"throttle_events": None}, "throttling unknown"),
        ({"throttle_events": 2}, "throttled 2 times"),
        ({"soc": ""}, "SoC unknown"),
        ({"device": "", "jetson_linux": "", "soc": ""}, "device unknown"),
        ({"gpu_clock_mhz": None}, "clocks of the GPU unknown"),
        ({"gpu_clock_mhz": (306.0, 1020.0)}, "GPU moved between 306 and 1020 MHz"),
        ({"power_mode": ""}, "nvpmodel does not answer"),
        ({"virtual": "kvm"}, "virtual machine"),
        ({"virtual": None}, "virtual machine"),
        ({"others_share": 0.2}, "other processes took 20%"),
        ({"stolen_share": 0.05}, "host of the virtual machine took 5.0%"),
        ({"limited_ms": 12.0}, "quota made it wait 12 ms"),
        ({"gpus": ({"name": "H100", "throttled": "reasons 0x4"},)}, "H100 was throttled"),
    ],
)
def test_every_unknown_or_bad_condition_is_a_reason(changes: dict, reason: str) -> None:
    found = reasons_against(Conditions(**{**GOOD, **changes}))
    assert len(found) == 1
    assert reason in found[0]


def test_only_what_moves_the_times_keeps_runs_from_being_compared() -> None:
    unknown = Conditions(**{**GOOD, "governors": (), "clock_mhz": None, "virtual": "kvm", "temperature_c": None})
    assert len(reasons_against(unknown)) == 4
    assert disturbances(unknown) == []
    assert len(disturbances(Conditions(**{**GOOD, "others_share": 0.2, "throttle_events": 1}))) == 2


def test_a_board_s_own_files_are_read(tmp_path: Path, bundle: Bundle) -> None:
    root = board(tmp_path)
    watch = ConditionsWatch(bundle, 4, root)
    with watch:
        (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("729000\n")
        (root / "sys/class/thermal/thermal_zone0/temp").write_text("63000\n")
        (root / "sys/class/hwmon/hwmon1/oc1_event_cnt").write_text("5\n")
        (root / "sys/fs/cgroup/cpu.stat").write_text("throttled_usec 3500\n")
    found = watch.finish(["the weather"])
    assert found.device == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.soc == "tegra234"
    assert found.jetson_linux.startswith("# R36")
    assert found.governors == ("performance",)
    assert found.clock_mhz == (729.0, 1728.0)
    assert found.gpu_clock_mhz == (1020.0, 1020.0)
    assert found.temperature_c == (51.218, 63.0)
    assert found.throttle_events == 2
    assert found.limited_ms == 2.5
    assert found.virtual == ""
    assert found.threads == 4
    assert found.bundle["sha256"] == bundle.sha256
    assert found.peak_memory_mib is not None
    assert found.peak_memory_mib > 10
    assert found.reasons[-1] == "the weather"
    assert not found.publishable


def test_a_virtual_machine_is_known_by_its_processor_s_flags(tmp_path: Path, bundle: Bundle) -> None:
    root = board(tmp_path, **{"proc/cpuinfo": "model name\t: EPYC\nflags\t\t: fpu hypervisor avx2\n"})
    with ConditionsWatch(bundle, 0, root) as watch:
        pass
    assert watch.finish().virtual == "unnamed"


def test_a_virtual_machine_on_arm_is_known_by_its_firmware(tmp_path: Path, bundle: Bundle) -> None:
    arm = {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n", "sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}
    with ConditionsWatch(bundle, 0, board(tmp_path, **arm)) as watch:
        pass
    assert watch.finish().virtual == "Amazon EC2"


def test_a_machine_that_says_nothing_is_not_publishable(tmp_path: Path, bundle: Bundle) -> None:
    with ConditionsWatch(bundle, 0, tmp_path) as watch:
        pass
    found = watch.finish()
    for what in ("governor", "clocks", "temperatures", "throttling", "virtual"):
        assert any(what in reason for reason in found.reasons)

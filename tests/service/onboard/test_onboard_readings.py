from __future__ import annotations

from pathlib import Path

import pytest

from fusar_edge.errors import InputError
from fusar_edge.service.onboard.readings import BoardReadings, Reading, ReplayedReadings


def zone(sys: Path, number: int, name: str, millidegrees: str) -> Path:
    folder = sys / f"class/thermal/thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "type").write_text(f"{name}\n")
    (folder / "temp").write_text(f"{millidegrees}\n")
    return folder / "temp"


def monitor(sys: Path, number: int, rails: dict[str, tuple[int, int]], name: str = "ina3221") -> Path:
    """An INA3221 as the kernel shows it: label, mV and mA of each channel."""
    folder = sys / f"class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    return folder


def test_the_hottest_zone_counts_and_those_that_say_nonsense_do_not(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", "47250")
    zone(tmp_path, 1, "gpu-thermal", "51500")
    zone(tmp_path, 2, "cv0-thermal", "-256000")
    zone(tmp_path, 3, "PMIC-Die", "100000")
    zone(tmp_path, 4, "soc0-thermal", "")
    zone(tmp_path, 5, "cv1-thermal", "255000")
    assert BoardReadings(tmp_path)() == Reading(51.5, None)


def test_a_board_whose_zones_are_all_switched_off_says_nothing(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cv0-thermal", "-256000")
    assert BoardReadings(tmp_path)() is None


def test_orin_nx_says_its_power_in_one_rail(tmp_path: Path) -> None:
    rails = {"VDD_IN": (5000, 2000), "VDD_CPU_GPU_CV": (5000, 800), "VDD_SOC": (5000, 500)}
    folder = monitor(tmp_path, 3, rails)
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("12\n")
    assert BoardReadings(tmp_path)() == Reading(None, 10.0)


def test_agx_orin_is_the_sum_of_its_rails_without_the_one_that_hangs_on_another(tmp_path: Path) -> None:
    rails = {"VDD_GPU_SOC": (12000, 500), "VDD_CPU_CV": (12000, 250), "VIN_SYS_5V0": (5000, 1000)}
    monitor(tmp_path, 3, rails)
    monitor(tmp_path, 4, {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 300)})
    assert BoardReadings(tmp_path)() == Reading(None, 14.0)


def test_thor_says_its_power_in_microwatts(tmp_path: Path) -> None:
    monitor(tmp_path, 3, {"VDD_GPU": (12000, 500)})
    ina238 = monitor(tmp_path, 5, {}, name="ina238")
    (ina238 / "power1_input").write_text("63500000\n")
    assert BoardReadings(tmp_path)() == Reading(None, 63.5)


def test_a_rail_that_does_not_answer_makes_no_sum_of_the_others(tmp_path: Path) -> None:
    folder = monitor(tmp_path, 3, {"VDD_GPU_SOC": (12000, 500), "VDD_CPU_CV": (12000, 250)})
    zone(tmp_path, 0, "tj-thermal", "60000")
    board = BoardReadings(tmp_path)
    assert board() == Reading(60.0, 9.0)
    (folder / "curr2_input").unlink()
    assert board() == Reading(60.0, None)


def test_a_board_without_sensors_says_nothing(tmp_path: Path) -> None:
    board = BoardReadings(tmp_path)
    assert board() is None
    assert board.sensors == []


def test_this_machine_can_be_asked() -> None:
    reading = BoardReadings()()
    assert reading is None or isinstance(reading, Reading)


def test_a_log_is_played_from_the_first_call_on_and_its_last_line_holds(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"t": 100, "temperature_c": 60}\n\n{"t": 110, "temperature_c": 80, "power_w": 12}\n{"t": 130}\n')
    clock = iter((7.0, 16.9, 17.0, 36.9, 37.0, 5000.0))
    played = ReplayedReadings(log, lambda: next(clock))
    seen = [played() for _ in range(6)]
    assert seen == [Reading(60), Reading(60), Reading(80, 12), Reading(80, 12), Reading(), Reading()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no reading"),
        ('{"t": 1}\n{"t": "x"}', "line 2"),
        ('{"t": 1, "celsius": 4}', "celsius"),
        ('{"t": 2}\n{"t": 1}', "line 2: t 1 is before 2"),
        ("\x00\xff", "line 1"),
    ],
)
def test_a_log_that_cannot_be_played_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message) as refusal:
        ReplayedReadings(log)
    assert str(log) in str(refusal.value)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        ReplayedReadings(tmp_path / "none.jsonl")

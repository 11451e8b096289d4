"""tegrastats: lines of four boards as published, logs, and any text at all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusar_edge.bench.power.energy import module_rails, trace_from_log
from fusar_edge.bench.power.tegrastats import Line, Tegrastats, line_from_text, lines_from_log
from fusar_edge.errors import DeviceError, InputError

LOGS = Path(__file__).parent / "tegrastats"


def lines(board: str) -> list[Line]:
    texts = [row for row in (LOGS / f"{board}.log").read_text().splitlines() if not row.startswith("#")]
    read = [line_from_text(row) for row in texts]
    assert None not in read
    return [line for line in read if line is not None]


@pytest.mark.parametrize(
    ("board", "number", "watts", "whole"),
    [
        ("orin-nano", 1, {"VDD_IN": 4.541, "VDD_CPU_GPU_CV": 0.521, "VDD_SOC": 1.446}, 4.541),
        ("orin-nx", 0, {"VDD_IN": 17.946, "VDD_CPU_GPU_CV": 8.896, "VDD_SOC": 3.923}, 17.946),
        ("agx-orin", 1, {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.607}, 2.412 + 1.607 + 4.607),
        # VDDQ hangs on VIN_SYS_5V0: counted once.
        (
            "agx-orin",
            3,
            {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025, "VDDQ_VDD2_1V8AO": 0.301},
            2.34 + 0.39 + 4.025,
        ),
        ("agx-thor", 1, {"VDD_GPU": 0.0, "VDD_CPU_SOC_MSS": 4.923, "VIN_SYS_5V0": 4.327}, 4.923 + 4.327),
        ("agx-thor", 2, {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 18.961, "VIN_SYS_5V0": 18.331, "VIN": 87.426}, 87.426),
        ("agx-thor", 3, {"VDD_GPU": 1.962, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78}, 19.78),
    ],
)
def test_rails_of_each_board_are_its_present_power_and_add_up_to_the_module(
    board: str, number: int, watts: dict[str, float], whole: float
) -> None:
    line = lines(board)[number]
    assert line.watts == pytest.approx(watts)
    assert sum(line.watts[rail] for rail in module_rails(line.watts)) == pytest.approx(whole)


def test_the_rest_of_a_line_is_read_too() -> None:
    line = lines("orin-nx")[0]
    assert line.ram_mib == (6982, 7620)
    assert line.cores == ((97, 1984), (95, 1984), (95, 1984), (91, 1984), (88, 1984), (93, 247))
    assert (line.gpu_percent, line.gpu_mhz) == (84, 713)
    assert line.temperatures_c["tj"] == 65.562
    assert len(line.temperatures_c) == 9
    assert line.at is not None
    assert time.localtime(line.at)[:6] == (2025, 5, 15, 18, 30, 28)


def test_what_is_switched_off_has_no_temperature_and_no_clock() -> None:
    orin, thor = lines("agx-orin")[3], lines("agx-thor")[0]
    assert "GPU" not in orin.temperatures_c  # -256C
    assert orin.temperatures_c["CPU"] == 44.562
    assert (thor.gpu_percent, thor.gpu_mhz) == (None, 0)
    off = line_from_text("RAM 1/2MB CPU [14%@729,off,off,3%@1036] VDD_IN 1mW/1mW")
    assert off is not None
    assert off.cores == ((14, 729), None, None, (3, 1036))


def test_older_releases_write_rails_without_units_and_idle_monitors_go_below_zero() -> None:
    nano = line_from_text("RAM 1409/3964MB (lfb 28x4MB) IRAM 0/252kB(lfb 252kB) POM_5V_IN 2003/2003 POM_5V_CPU 320/320")
    thor = line_from_text("05-14-2026 21:36:35 RAM 26063/125772MB VDD_GPU -392mW/-392mW VIN 15004mW/15096mW")
    assert nano is not None
    assert thor is not None
    assert nano.watts == {"POM_5V_IN": 2.003, "POM_5V_CPU": 0.32}
    assert thor.watts == {"VDD_GPU": -0.392, "VIN": 15.004}


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    line_from_text(text)


PIECES = [
    "RAM 1/2MB",
    "CPU [",
    "off]",
    "99-99-9999 99:99:99 ",
    "VDD_IN 1mW/",
    "@-256C",
    "GR3D_FREQ @[",
    "mW/2mW/3mW",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_torn_lines_are_read_without_an_error(text: str) -> None:
    line_from_text(text)


def test_a_day_that_never_was_is_no_time() -> None:
    for day in ("99-99-9999 99:99:99", "02-30-2026 10:00:00", "01-01-0000 00:00:00"):
        line = line_from_text(f"{day} RAM 1/2MB VDD_IN 1mW/1mW")
        assert line is not None
        assert line.at is None
        assert line.watts == {"VDD_IN": 0.001}


RAILS = st.dictionaries(
    st.from_regex(r"V[A-Z]{1,4}_[A-Z0-9]{1,6}", fullmatch=True), st.integers(-500, 99_999), max_size=6
)


@given(RAILS, st.dictionaries(st.from_regex(r"[a-z]{2,4}[0-9]?", fullmatch=True), st.integers(-50, 120), max_size=6))
def test_what_is_printed_in_the_published_format_is_read_back(rails: dict[str, int], heat: dict[str, int]) -> None:
    printed = " ".join(f"{rail} {mw}mW/{mw + 1}mW" for rail, mw in rails.items())
    temperatures = " ".join(f"{name}@{c}.5C" for name, c in heat.items())
    line = line_from_text(f"05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) GR3D_FREQ 0% {temperatures} {printed}")
    assert line is not None
    assert line.watts == {rail: mw / 1e3 for rail, mw in rails.items()}
    assert line.temperatures_c == {name: float(f"{c}.5") for name, c in heat.items()}


def test_lines_of_one_second_are_spread_over_it(tmp_path: Path) -> None:
    row = "05-09-2026 18:42:{:02d} RAM 1/2MB VDD_IN {}mW/1mW\n"
    log = tmp_path / "t.log"
    log.write_text("torn\n" + "".join(row.format(6 + i // 4, 1000 + i) for i in range(8)))
    read = lines_from_log(log)
    times = [(line.at or 0.0) - (read[0].at or 0.0) for line in read]
    assert times == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])
    assert [line.watts["VDD_IN"] for line in read] == pytest.approx([1 + i / 1e3 for i in range(8)])


def test_a_recorded_log_becomes_energy(tmp_path: Path) -> None:
    log = tmp_path / "t.log"
    text = (LOGS / "agx-orin.log").read_text().splitlines()
    log.write_text("\n".join(text[2:5]))
    trace = trace_from_log(log)
    start = float(trace.times[0])
    assert trace.spent(["VIN_SYS_5V0"], start, start + 2) == pytest.approx(4.707 / 2 + 4.607 + 4.707 / 2)
    assert trace.spent(["VIN_SYS_5V0"], start - 1, start) is None


def test_logs_without_power_or_without_time_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "t.log"
    log.write_text("nothing\n")
    with pytest.raises(InputError, match="no line holds a power rail"):
        lines_from_log(log)
    log.write_text("RAM 1/2MB VDD_IN 5000mW/5000mW\n")
    with pytest.raises(InputError, match="without date and time"):
        lines_from_log(log)
    with pytest.raises(InputError, match="cannot be read"):
        lines_from_log(tmp_path / "none.log")


def test_the_running_tool_is_listened_to() -> None:
    line = "RAM 1/2MB VDD_IN 5000mW/5000mW VDD_SOC 1000mW/1mW"
    tool = Tegrastats(["sh", "-c", f"echo starting; echo '{line}'; exec sleep 60"])
    try:
        assert tool.rails == ("VDD_IN", "VDD_SOC")
        assert tool.read() == {"VDD_IN": 5.0, "VDD_SOC": 1.0}
    finally:
        tool.close()


def test_a_tool_that_has_fallen_silent_gives_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusar_edge.bench.power.tegrastats.SILENT_S", 0.05)
    tool = Tegrastats(["echo", "RAM 1/2MB VDD_IN 5000mW/5000mW"])
    try:
        time.sleep(0.1)
        with pytest.raises(DeviceError, match="has said nothing for"):
            tool.read()
    finally:
        tool.close()


def test_a_tool_that_is_absent_or_knows_no_rail_says_so() -> None:
    with pytest.raises(DeviceError, match="JetPack"):
        Tegrastats(["no-such-tegrastats"])
    with pytest.raises(DeviceError, match="nothing of power"):
        Tegrastats(["echo", "RAM 1/2MB"])

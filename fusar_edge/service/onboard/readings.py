"""How hot the board is and what it draws: from the kernel's files, or replayed from a log.

A source returns None where it has nothing to say: no sensor, or none that answers.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from fusar_edge.board import Rails, folders, ina_rails, number_of, text_of, watts_of
from fusar_edge.errors import InputError

PLAUSIBLE_C = (-60.0, 150.0)
"""Zones of parts that are switched off say -256 C."""
STUCK_ZONES = ("PMIC-Die",)
"""Says 100 C at all times on Jetson Nano and Xavier, as NVIDIA states."""
WHOLE_BOARD = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed all the others: Thor; Orin NX and Nano, Xavier NX; Nano."""
PART_OF_ANOTHER = ("VDDQ_VDD2_1V8AO", "sum of shunt voltages", "NC")
"""AGX Orin has no rail for the whole module. Its VDDQ reads 5 V as VIN_SYS_5V0 does, and is taken to hang on it."""


class Reading(msgspec.Struct, frozen=True):
    """None: not measured."""

    temperature_c: float | None = None
    """The hottest part of the board."""
    power_w: float | None = None
    """Of the module."""


class Readings(Protocol):
    def __call__(self) -> Reading | None: ...


class BoardReadings:
    """Thermal zones and power monitors (INA3221, INA238) of the running kernel; about 1 ms for each rail (I2C)."""

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._zones = [zone / "temp" for zone in folders(sys / "class/thermal", "thermal_zone*") if _counts(zone)]
        self._rails = _rails(sys / "class/hwmon")

    @property
    def sensors(self) -> list[str]:
        """What was found, for people."""
        return [
            *(f"temperature {zone.parent.name}" for zone in self._zones),
            *(f"power {name}" for name in self._rails),
        ]

    def __call__(self) -> Reading | None:
        temperatures = [c / 1e3 for zone in self._zones if (c := number_of(zone)) is not None]
        temperatures = [c for c in temperatures if PLAUSIBLE_C[0] < c < PLAUSIBLE_C[1]]
        watts = [watts_of(files) for files in self._rails.values()]
        answered = [w for w in watts if w is not None]
        power_w = sum(answered) if answered and len(answered) == len(watts) else None  # a part is not the whole
        if not temperatures and power_w is None:
            return None
        return Reading(max(temperatures, default=None), power_w)


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    t: float
    temperature_c: float | None = None
    power_w: float | None = None


class ReplayedReadings:
    """A log played from the first call on: lines {"t": s, "temperature_c": C, "power_w": W}.

    `t` counts from any origin. A line holds until the next; the last one holds for ever.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """InputError, with the line, where the log cannot be used."""
        lines = _lines(path)
        self._times = [line.t - lines[0].t for line in lines]
        self._readings = [Reading(line.temperature_c, line.power_w) for line in lines]
        self._clock = clock
        self._start: float | None = None

    def __call__(self) -> Reading | None:
        now = self._clock()
        if self._start is None:
            self._start = now
        return self._readings[bisect.bisect_right(self._times, now - self._start) - 1]


def _lines(path: Path) -> list[_Line]:
    try:
        rows = path.read_bytes().splitlines()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}); give JSON lines of readings") from None
    lines: list[_Line] = []
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            line = msgspec.json.decode(row, type=_Line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            wanted = '{"t": seconds, "temperature_c": C, "power_w": W}'
            raise InputError(f"{path}, line {number}: {problem}; a line is {wanted}") from None
        if lines and line.t < lines[-1].t:
            raise InputError(f"{path}, line {number}: t {line.t:g} is before {lines[-1].t:g}; sort the log by time")
        lines.append(line)
    if not lines:
        raise InputError(f"{path} holds no reading; give at least one line")
    return lines


def _counts(zone: Path) -> bool:
    return text_of(zone / "type") not in STUCK_ZONES


def _rails(hwmon: Path) -> Rails:
    """The whole board's alone if there is one."""
    found = ina_rails(hwmon)
    whole = {name: files for name, files in found.items() if name in WHOLE_BOARD}
    return whole or {name: files for name, files in found.items() if name not in PART_OF_ANOTHER}

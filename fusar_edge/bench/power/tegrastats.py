"""NVIDIA's tegrastats: a line of it, a recorded log, or the running tool.

Format: Jetson Linux Developer Guide, "Tegrastats Utility" (r35 to r38). A rail reads `VDD_IN 4568mW/4561mW`: now / mean
since the start; release 39 adds a third, the largest; releases up to 32 leave out `mW`. Numbers may be negative (the
offset of an idle rail's monitor). Parts that are switched off say -256C, or `off`.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fusar_edge.errors import DeviceError, InputError

PLAUSIBLE_C = (-60.0, 150.0)
INTERVAL_MS = 100
SILENT_S = 2.0
"""A line that is older is no reading of now."""

_TIME = re.compile(r"^\s*(\d\d)-(\d\d)-(\d{4}) (\d\d):(\d\d):(\d\d)\s")
_RAM = re.compile(r"\bRAM (\d{1,9})/(\d{1,9})MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d{1,3})%@(\d{1,6})")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d{1,3})%)?(?:@\[?(\d{1,6})[\d,]*\]?)?")
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d{1,7})(?:mW(?:/-?\d{1,7}mW){0,2}|/-?\d{1,7})(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d{1,4}(?:\.\d{1,6})?)C(?!\S)")
_UNCONNECTED = "NC"


@dataclass(frozen=True)
class Line:
    """What one line says; absent fields are None or empty."""

    at: float | None = None
    """Unix seconds, from the device's local time; whole seconds, as printed."""
    watts: dict[str, float] = field(default_factory=dict)
    """Rail -> power now."""
    temperatures_c: dict[str, float] = field(default_factory=dict)
    ram_mib: tuple[int, int] | None = None
    """Used, of all."""
    cores: tuple[tuple[int, int] | None, ...] = ()
    """Load in percent and clock in MHz of each processor; None: off."""
    gpu_percent: int | None = None
    gpu_mhz: int | None = None


def line_from_text(text: str) -> Line | None:
    """Read one line; None where it is none of tegrastats. Never raises, on any text."""
    ram = _RAM.search(text)
    watts: dict[str, float] = {}
    for rail, milliwatts in _RAIL.findall(text):
        if rail != _UNCONNECTED:
            watts.setdefault(rail, int(milliwatts) / 1e3)
    if ram is None and not watts:
        return None
    temperatures = {name: float(value) for name, value in _TEMPERATURE.findall(text)}
    gpu, cpu = _GPU.search(text), _CPU.search(text)
    return Line(
        at=_seconds(text),
        watts=watts,
        temperatures_c={name: c for name, c in temperatures.items() if PLAUSIBLE_C[0] < c < PLAUSIBLE_C[1]},
        ram_mib=(int(ram[1]), int(ram[2])) if ram else None,
        cores=tuple(_core(core) for core in cpu[1].split(",")) if cpu else (),
        gpu_percent=int(gpu[1]) if gpu and gpu[1] else None,
        gpu_mhz=int(gpu[2]) if gpu and gpu[2] else None,
    )


def _core(text: str) -> tuple[int, int] | None:
    found = _CORE.search(text)
    return (int(found[1]), int(found[2])) if found else None


def _seconds(text: str) -> float | None:
    found = _TIME.match(text)
    if found is None:
        return None
    month, day, year, hour, minute, second = map(int, found.groups())
    try:
        return datetime(year, month, day, hour, minute, second).timestamp()  # of the device's own time zone
    except (OverflowError, ValueError, OSError):  # no such day
        return None


def lines_from_log(path: Path) -> list[Line]:
    """A recorded log. Lines of the same second are spread over it, in their order: the tool prints whole seconds.

    InputError where the file holds no power, or no time to set it beside what was measured.
    """
    try:
        rows = path.read_text(errors="replace").splitlines()
    except OSError as problem:
        raise InputError(f"--power {path}: cannot be read ({problem.strerror}); give a log of tegrastats") from None
    lines = [line for row in rows if (line := line_from_text(row)) is not None and line.watts]
    if not lines:
        raise InputError(f"--power {path}: no line holds a power rail; record it with `tegrastats --logfile`")
    if any(line.at is None for line in lines):
        raise InputError(
            f"--power {path}: lines without date and time cannot be set beside the tiles; record it with the "
            "tegrastats of JetPack 5 or later, on this device, during the run"
        )
    return _spread(lines)


def _spread(lines: Sequence[Line]) -> list[Line]:
    groups: dict[float, list[Line]] = {}
    for line in lines:
        assert line.at is not None
        groups.setdefault(line.at, []).append(line)
    return [
        Line(at + (place + 0.5) / len(group), line.watts, line.temperatures_c, line.ram_mib, line.cores)
        for at, group in sorted(groups.items())
        for place, line in enumerate(group)
    ]


class Tegrastats:
    """The running tool, read by a thread: `read` gives the rails of its last line. Fails where it is not installed."""

    name, unit = "tegrastats", "W"

    def __init__(self, command: Sequence[str] = ("tegrastats", "--interval", str(INTERVAL_MS))) -> None:
        try:
            self._process = subprocess.Popen(
                list(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
            )
        except OSError as problem:
            raise DeviceError(f"tegrastats cannot be run ({problem.strerror}): it comes with JetPack") from None
        self._watts: dict[str, float] = {}
        self._heard = 0.0
        """`monotonic` of the last line."""
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._thread.start()
        if not self._first.wait(5.0) or not self._watts:
            self.close()
            raise DeviceError("tegrastats says nothing of power rails on this machine")
        self.rails = tuple(self._watts)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for row in self._process.stdout:
            line = line_from_text(row)
            if line is not None and line.watts:
                self._watts, self._heard = line.watts, time.monotonic()
                self._first.set()
        self._first.set()

    def read(self) -> dict[str, float]:
        """DeviceError once the tool has ended or fallen silent: what it said last is not what is drawn now."""
        if (silent := time.monotonic() - self._heard) > SILENT_S:
            raise DeviceError(f"tegrastats has said nothing for {silent:.0f} s")
        return dict(self._watts)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join(1.0)
        if self._process.stdout is not None:
            self._process.stdout.close()

"""Power monitors of a Jetson (INA3221; INA238 on Thor) in the kernel's hwmon files; about 1 ms for each rail (I2C)."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.errors import DeviceError

NOT_RAILS = ("sum of shunt voltages", "NC")
THOR_INPUT = "VIN"
"""Thor's INA238 has no label and sits on the module's input."""


class Ina:
    """Rails by label. Fails where there is none."""

    name, unit = "ina", "W"

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._files = _rails(sys / "class/hwmon")
        if not self._files:
            raise DeviceError("no INA power monitor in the kernel's hwmon: it is a Jetson's")
        self.rails = tuple(self._files)

    def read(self) -> dict[str, float]:
        """Watts; a rail that does not answer just now is left out."""
        found = {}
        for rail, files in self._files.items():
            values = [value for path in files if (value := _number(path)) is not None]
            if len(values) == len(files):
                # mV x mA is uW, and so is a file of power.
                found[rail] = (values[0] * values[1] if len(values) == 2 else values[0]) / 1e6
        return found

    def close(self) -> None:
        pass


def _rails(hwmon: Path) -> dict[str, tuple[Path, ...]]:
    """Rail -> files of voltage (mV) and current (mA), or the one of power (uW)."""
    found: dict[str, tuple[Path, ...]] = {}
    for monitor in sorted(hwmon.glob("hwmon*")) if hwmon.is_dir() else []:
        if not (_text(monitor / "name") or "").startswith("ina"):
            continue
        for label in sorted(monitor.glob("in*_label")):
            name = _text(label)
            voltage = label.with_name(label.name.replace("_label", "_input"))
            current = voltage.with_name(voltage.name.replace("in", "curr", 1))
            if name and name not in NOT_RAILS and current.exists():
                found[name] = (voltage, current)
        for power in sorted(monitor.glob("power*_input")):
            name = _text(power.with_name(power.name.replace("_input", "_label"))) or _text(monitor / "label")
            found.setdefault(name or THOR_INPUT, (power,))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):  # a sensor that sleeps says EAGAIN or EIO
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None

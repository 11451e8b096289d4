"""Sensors of the board, from the kernel's files: what `serve --profile onboard` obeys and `bench` measures with."""

from __future__ import annotations

from pathlib import Path

THOR_INPUT = "VIN"
"""Thor's INA238 has no label and sits on the module's input."""

Rails = dict[str, tuple[Path, ...]]
"""Rail -> files of voltage (mV) and current (mA), or the one of power (uW)."""


def text_of(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):  # a sensor that sleeps says EAGAIN or EIO
        return None


def number_of(path: Path) -> float | None:
    try:
        return float(text_of(path) or "")
    except ValueError:
        return None


def folders(parent: Path, pattern: str) -> list[Path]:
    return sorted(parent.glob(pattern)) if parent.is_dir() else []


def ina_rails(hwmon: Path) -> Rails:
    """Of power monitors (INA3221, INA238) below `class/hwmon`; reading one takes about 1 ms (I2C)."""
    found: Rails = {}
    for monitor in folders(hwmon, "hwmon*"):
        if not (text_of(monitor / "name") or "").startswith("ina"):
            continue
        for label in sorted(monitor.glob("in*_label")):
            voltage = label.with_name(label.name.replace("_label", "_input"))
            current = voltage.with_name(voltage.name.replace("in", "curr", 1))
            if current.exists():
                found[text_of(label) or label.name] = (voltage, current)
        for power in sorted(monitor.glob("power*_input")):
            name = text_of(power.with_name(power.name.replace("_input", "_label"))) or text_of(monitor / "label")
            found.setdefault(name or THOR_INPUT, (power,))
    return found


def watts_of(files: tuple[Path, ...]) -> float | None:
    """None where a file does not answer just now. mV x mA is uW, and so is a file of power."""
    product = 1.0
    for path in files:
        value = number_of(path)
        if value is None:
            return None
        product *= value
    return product / 1e6

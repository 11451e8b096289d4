"""Power monitors of a Jetson (INA3221; INA238 on Thor) in the kernel's hwmon files; about 1 ms for each rail (I2C)."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.board import ina_rails, watts_of
from fusar_edge.errors import DeviceError

NOT_RAILS = ("sum of shunt voltages", "NC")


class Ina:
    """Rails by label. Fails where there is none."""

    name, unit = "ina", "W"

    def __init__(self, sys: Path = Path("/sys")) -> None:
        rails = ina_rails(sys / "class/hwmon")
        self._files = {name: files for name, files in rails.items() if name not in NOT_RAILS}
        if not self._files:
            raise DeviceError("no INA power monitor in the kernel's hwmon: it is a Jetson's")
        self.rails = tuple(self._files)

    def read(self) -> dict[str, float]:
        """Watts; a rail that does not answer just now is left out."""
        answers = {rail: watts_of(files) for rail, files in self._files.items()}
        return {rail: watts for rail, watts in answers.items() if watts is not None}

    def close(self) -> None:
        pass

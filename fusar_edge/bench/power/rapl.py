"""RAPL: energy counters of Intel and AMD processors, in the kernel's powercap. They wrap, and are root's to read."""

from __future__ import annotations

from pathlib import Path

from fusar_edge.errors import DeviceError


class Rapl:
    """Domains such as `package-0`, `package-0/dram`; joules since it was opened."""

    name, unit = "rapl", "J"

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._domains = _domains(sys / "class/powercap")
        if not self._domains:
            raise DeviceError(
                "no RAPL counter in the kernel's powercap: a virtual machine or another kind of processor"
            )
        self._last: dict[str, int] = {}
        self._joules = dict.fromkeys(self._domains, 0.0)
        try:
            self.read()
        except PermissionError:
            raise DeviceError(
                "RAPL counters are there and cannot be read: energy_uj is root's (CVE-2020-8694); run as root, or let "
                "the administrator allow it"
            ) from None
        self.rails = tuple(self._domains)

    def read(self) -> dict[str, float]:
        """Joules of each domain since the source was opened."""
        for name, folder in self._domains.items():
            now = int((folder / "energy_uj").read_text())
            before = self._last.get(name, now)
            if now < before:  # wrapped, once at most between two readings: a counter lasts for minutes
                before -= int((folder / "max_energy_range_uj").read_text()) + 1
            self._joules[name] += (now - before) / 1e6
            self._last[name] = now
        return dict(self._joules)

    def close(self) -> None:
        pass


def _domains(powercap: Path) -> dict[str, Path]:
    """`intel-rapl:0` is a package, `intel-rapl:0:1` a part of it. intel-rapl-mmio repeats the packages: left out."""
    found: dict[str, Path] = {}
    names: dict[str, str] = {}
    for folder in sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []:
        try:
            own = (folder / "name").read_text().strip()
        except OSError:
            continue
        parent = names.get(folder.name.rpartition(":")[0])
        names[folder.name] = name = f"{parent}/{own}" if parent else own
        found[name] = folder
    return found

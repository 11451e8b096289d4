"""Under which conditions a run was made, and whether its numbers may be published.

What could not be found out counts like what is bad: the run is marked `not publishable`, with every reason.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from fusar_edge import __version__
from fusar_edge.bench.machine import (
    first_line,
    first_number,
    gpus,
    hypervisor,
    peak_memory_mib,
    power_mode,
    processor_name,
)
from fusar_edge.errors import MissingExtraError
from fusar_edge.manifest import package_versions
from fusar_edge.runtime.bundle import Bundle

FILENAME = "conditions.json"
POLL_S = 1.0
OTHERS_SHARE = 0.05
"""Of all processor time, taken by other processes."""
STOLEN_SHARE = 0.01
"""Of all processor time, taken by the host of a virtual machine."""
CLOCK_SPREAD = 0.10
"""Largest minus smallest over largest clock of a processor during the run."""
HOT_C = 90.0
"""Hotter parts are throttled on every device of engines/, sooner or later."""
GPU_NODE = re.compile(r"gpu|gv11b|ga10b|gb10b|gp10b|gm20b")
"""Of a Jetson's GPU below /sys/class/devfreq, by release: 17000000.ga10b, 17000000.gpu, gpu-gpc-0."""
PLAUSIBLE_C = (-60.0, 150.0)
STEADY_GOVERNORS = ("performance",)
PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "rasterio", "tokenizers", "llguidance", "tensorrt",
    "torch", "transformers", "optimum", "onnx", "llama-cpp-python", "gguf",
)  # fmt: skip


class Conditions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Of one run. None or empty: could not be found out."""

    fusar_edge: str = __version__
    started: float = 0.0
    """Unix seconds."""
    seconds: float = 0.0
    device: str = ""
    """Board's name in the device tree, else the processor's."""
    soc: str = ""
    processor: str = ""
    processors: int = 0
    """That this process may use."""
    threads: int = 0
    """That the engine was given; 0: all."""
    memory_mib: int = 0
    system: str = ""
    jetson_linux: str = ""
    """First line of /etc/nv_tegra_release."""
    virtual: str | None = None
    """Name of the hypervisor; "" on bare metal."""
    packages: dict[str, str] = {}
    python: str = ""
    gpus: tuple[dict[str, Any], ...] = ()
    """Name, driver, clocks and throttle reasons of discrete GPUs."""
    bundle: dict[str, str] = {}
    """Name, engine, precision, sha256 of the bundle and of its files."""
    power_mode: str = ""
    governors: tuple[str, ...] = ()
    clock_mhz: tuple[float, float] | None = None
    """Lowest and highest clock of any processor during the run."""
    gpu_clock_mhz: tuple[float, float] | None = None
    """Lowest and highest clock of a Jetson's GPU during the run."""
    temperature_c: tuple[float, float] | None = None
    """Hottest part, at the start and at most."""
    throttle_events: int | None = None
    others_share: float | None = None
    stolen_share: float | None = None
    limited_ms: float | None = None
    """Time that a control group's quota made this process wait."""
    peak_memory_mib: float | None = None
    """Largest resident memory of this process."""
    reasons: tuple[str, ...] = ()
    """Why the numbers may not be published; empty: they may."""

    @property
    def publishable(self) -> bool:
        return not self.reasons


class ConditionsWatch:
    """Looks at the machine while a run goes on, once a second; `finish` makes the record."""

    def __init__(self, bundle: Bundle, threads: int, root: Path = Path("/")) -> None:
        """`root`: another tree of /sys, /proc and /etc, for tests."""
        self._psutil = _psutil()
        self._root, self._bundle, self._threads = root, bundle, threads
        self._clocks: list[float] = []
        self._temperatures: list[float] = []
        self._gpu_clocks: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="conditions", daemon=True)

    def __enter__(self) -> ConditionsWatch:
        self._started = time.time()
        self._cpu = self._psutil.cpu_times()
        self._own = self._psutil.Process().cpu_times()
        self._events, self._limited = self._throttle_events(), self._limited_us()
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._look()

    def finish(self, more_reasons: Sequence[str] = ()) -> Conditions:
        """After the `with` block; `more_reasons`: what others know against publishing."""
        own = self._psutil.Process().cpu_times()
        # Children that have ended count as ours: the service of `live`, candidates of a comparison.
        shares = self._shares(self._psutil.cpu_times(), sum(own[:4]) - sum(self._own[:4]))
        events, limited = self._throttle_events(), self._limited_us()
        settings = self._bundle.settings
        found = Conditions(
            started=self._started,
            seconds=time.time() - self._started,
            device=self._device(),
            soc=self._soc(),
            processor=processor_name(self._root),
            processors=processors(),
            threads=self._threads,
            memory_mib=self._psutil.virtual_memory().total >> 20,
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            jetson_linux=first_line(self._root / "etc/nv_tegra_release"),
            virtual=hypervisor(self._root),
            python=platform.python_version(),
            packages=package_versions(*PACKAGES),
            gpus=gpus(),
            bundle={
                "name": settings.name,
                "engine": settings.engine,
                "precision": settings.precision,
                "sha256": self._bundle.sha256,
                **{f"sha256 {name}": digest for name, digest in self._bundle.manifest.files.items()},
            },
            power_mode=power_mode(self._root),
            governors=tuple(sorted({first_line(path) for path in self._files("cpufreq/scaling_governor")} - {""})),
            clock_mhz=(min(self._clocks), max(self._clocks)) if self._clocks else None,
            gpu_clock_mhz=(min(self._gpu_clocks), max(self._gpu_clocks)) if self._gpu_clocks else None,
            temperature_c=(self._temperatures[0], max(self._temperatures)) if self._temperatures else None,
            throttle_events=None if events is None or self._events is None else events - self._events,
            others_share=shares[0],
            stolen_share=shares[1],
            limited_ms=None if limited is None or self._limited is None else (limited - self._limited) / 1e3,
            peak_memory_mib=peak_memory_mib() or None,
        )
        found.reasons = (*reasons_against(found), *more_reasons)
        return found

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        for path in self._files("cpufreq/scaling_cur_freq"):
            if (khz := first_number(path)) is not None:
                self._clocks.append(khz / 1e3)
        zones = (self._root / "sys/class/thermal").glob("thermal_zone*/temp")
        celsius = [millis / 1e3 for path in zones if (millis := first_number(path)) is not None]
        celsius = [c for c in celsius if PLAUSIBLE_C[0] < c < PLAUSIBLE_C[1]]
        if celsius:
            self._temperatures.append(max(celsius))
        for path in (self._root / "sys/class/devfreq").glob("*/cur_freq"):
            if (GPU_NODE.search(path.parent.name)) and (hertz := first_number(path)) is not None:
                self._gpu_clocks.append(hertz / 1e6)

    def _shares(self, now: Any, own_s: float) -> tuple[float | None, float | None]:
        """Shares of all processor time since the start: other processes, and the host."""
        spent = {name: getattr(now, name) - getattr(self._cpu, name) for name in now._fields}
        # On Linux guests are counted in `user` too.
        total = sum(value for name, value in spent.items() if not name.startswith("guest"))
        if total <= 0:
            return None, None
        waiting = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
        stolen = spent.get("steal", 0.0)
        return max(total - waiting - stolen - own_s, 0.0) / total, stolen / total if "steal" in spent else None

    def _files(self, name: str) -> list[Path]:
        return sorted((self._root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/{name}"))

    def _device(self) -> str:
        model = first_line(self._root / "proc/device-tree/model")
        board = first_line(self._root / "sys/class/dmi/id/product_name")
        return model or board or processor_name(self._root)

    def _soc(self) -> str:
        return first_line(self._root / "proc/device-tree/compatible").rpartition("nvidia,")[2]

    def _throttle_events(self) -> int | None:
        """x86 counts by core; Jetsons count over-current events in hwmon. None: nobody counts."""
        paths = self._files("thermal_throttle/core_throttle_count")
        paths += sorted((self._root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
        counts = [count for path in paths if (count := first_number(path)) is not None]
        return int(sum(counts)) if counts else None

    def _limited_us(self) -> float | None:
        """Quota of the control group."""
        try:
            text = (self._root / "sys/fs/cgroup/cpu.stat").read_text()
        except OSError:
            return None
        found = re.search(r"^throttled_usec (\d+)$", text, re.MULTILINE)
        return float(found[1]) if found else None


def read_conditions(folder: Path) -> Conditions | None:
    """Of a folder that `bench` made; None where there are none that can be read."""
    try:
        return msgspec.json.decode((folder / FILENAME).read_bytes(), type=Conditions)
    except (OSError, msgspec.MsgspecError):
        return None


def processors() -> int:
    """Those this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reasons_against(c: Conditions) -> list[str]:
    """Unknown or bad conditions, in words."""
    found = []
    jetson = "jetson" in c.device.lower() or bool(c.jetson_linux)
    if not c.governors:
        found.append("governor of the processor unknown")
    elif set(c.governors) - set(STEADY_GOVERNORS):
        found.append(f"governor of the processor is {', '.join(c.governors)}: set performance")
    if c.clock_mhz is None:
        found.append("clocks of the processor unknown")
    elif (c.clock_mhz[1] - c.clock_mhz[0]) > CLOCK_SPREAD * c.clock_mhz[1]:
        found.append(f"clocks moved between {c.clock_mhz[0]:.0f} and {c.clock_mhz[1]:.0f} MHz: fix them")
    if c.temperature_c is None:
        found.append("temperatures unknown")
    elif c.temperature_c[1] >= HOT_C:
        found.append(f"{c.temperature_c[1]:.0f} C was reached: cool the device")
    if c.throttle_events is None:
        found.append("throttling unknown: this machine does not count it")
    if not c.device and not c.processor:
        found.append("device unknown: neither board nor processor has a name")
    if jetson and not c.soc:
        found.append("SoC unknown: the device tree names none")
    if jetson and c.gpu_clock_mhz is None:
        found.append("clocks of the GPU unknown")
    elif c.gpu_clock_mhz is not None and c.gpu_clock_mhz[1] - c.gpu_clock_mhz[0] > CLOCK_SPREAD * c.gpu_clock_mhz[1]:
        found.append(
            f"clocks of the GPU moved between {c.gpu_clock_mhz[0]:.0f} and {c.gpu_clock_mhz[1]:.0f} MHz: fix them"
        )
    if jetson and not c.power_mode:
        found.append("power mode unknown: nvpmodel does not answer")
    if c.virtual is None or c.virtual:
        found.append(f"virtual machine ({c.virtual or 'perhaps'}): what shares the host is unknown")
    return [*found, *disturbances(c)]


def disturbances(c: Conditions) -> list[str]:
    """What is known to have moved the times of a run: with any of it, runs cannot be compared."""
    found = []
    if c.throttle_events:
        found.append(f"throttled {c.throttle_events} times during the run")
    if c.others_share is None or c.others_share > OTHERS_SHARE:
        share = "an unknown share" if c.others_share is None else f"{c.others_share:.0%}"
        found.append(f"other processes took {share} of the processors: stop them")
    if c.stolen_share is not None and c.stolen_share > STOLEN_SHARE:
        found.append(f"the host of the virtual machine took {c.stolen_share:.1%} of the processors")
    if c.limited_ms:
        found.append(f"the control group's quota made it wait {c.limited_ms:.0f} ms")
    for gpu in c.gpus:
        if gpu.get("throttled"):
            found.append(f"{gpu['name']} was throttled: {gpu['throttled']}")
    return found


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        raise MissingExtraError("bench needs the extra: pip install 'fusar-edge[bench]'") from None
    return psutil

"""What a machine says of itself: processor, hypervisor, power mode, GPUs. Empty where it says nothing."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

VIRTUAL_VENDORS = ("amazon ec2", "qemu", "google", "microsoft", "vmware", "innotek", "xen", "openstack", "parallels")
"""System vendors in the firmware of virtual machines, lower case: processors of Arm have no flag for it."""


def processor_name(root: Path) -> str:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def hypervisor(root: Path) -> str | None:
    """systemd-detect-virt's way, without it: the processor says so itself (x86), else the firmware does."""
    try:
        if re.search(r"^flags\s*:.*\bhypervisor\b", (root / "proc/cpuinfo").read_text(), re.MULTILINE):
            return (
                first_line(root / "sys/hypervisor/type")
                or first_line(root / "sys/class/dmi/id/sys_vendor")
                or "unnamed"
            )
    except OSError:
        return None
    if first_line(root / "proc/device-tree/hypervisor/compatible"):
        return first_line(root / "proc/device-tree/hypervisor/compatible")
    vendor = first_line(root / "sys/class/dmi/id/sys_vendor")
    return vendor if vendor.lower().startswith(VIRTUAL_VENDORS) else ""


def peak_memory_mib() -> float:
    """Largest resident memory of this process; 0 where the system does not say.

    Linux: VmHWM, which starts anew with the program; getrusage's peak is at least what the parent had.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def power_mode(root: Path) -> str:
    """Of a Jetson, as `nvpmodel -q` names it."""
    if not first_line(root / "etc/nv_tegra_release"):
        return ""
    try:
        said = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"NV Power Mode:\s*(\S+)", said)
    return found[1] if found else ""


def gpus() -> tuple[dict[str, Any], ...]:
    """Discrete GPUs through NVML; none where it is not installed or does not start."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return ()
    try:
        return tuple(_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    idle = nvml.nvmlClocksThrottleReasonGpuIdle | nvml.nvmlClocksThrottleReasonApplicationsClocksSetting
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & ~idle
    return {
        "name": nvml.nvmlDeviceGetName(handle),
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttled": f"reasons {reasons:#x}" if reasons else "",
    }


def first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ").strip().partition("\n")[0]
    except OSError:
        return ""


def first_number(path: Path) -> float | None:
    try:
        return float(first_line(path))
    except ValueError:
        return None

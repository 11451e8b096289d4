"""Discrete NVIDIA GPUs: the board's energy counter (Volta and later), else its power."""

from __future__ import annotations

from typing import Any

from fusar_edge.errors import DeviceError, MissingExtraError


class Nvml:
    """Rails `GPU 0`, `GPU 1`, ...: whole boards, not the computer around them."""

    name = "nvml"

    def __init__(self, library: Any = None) -> None:
        """`library`: pynvml, or what stands for it in tests."""
        self._nvml = library or _library()
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as problem:
            raise DeviceError(f"NVML does not start ({problem}): no NVIDIA driver answers") from None
        self._gpus = {f"GPU {i}": self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)}
        if not self._gpus:
            raise DeviceError("NVML finds no GPU")
        self.rails = tuple(self._gpus)
        self.unit = "J" if self._counts() else "W"

    def _counts(self) -> bool:
        try:
            for gpu in self._gpus.values():
                self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        except self._nvml.NVMLError:
            return False
        return True

    def read(self) -> dict[str, float]:
        """Joules since the driver was loaded, or watts; see `unit`."""
        ask = self._nvml.nvmlDeviceGetTotalEnergyConsumption if self.unit == "J" else self._nvml.nvmlDeviceGetPowerUsage
        return {name: ask(gpu) / 1e3 for name, gpu in self._gpus.items()}  # mJ, mW

    def close(self) -> None:
        self._nvml.nvmlShutdown()


def _library() -> Any:
    try:
        import pynvml
    except ImportError:
        raise MissingExtraError("NVML needs a package: pip install 'fusar-edge[bench]'") from None
    return pynvml

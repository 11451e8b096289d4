"""Page-locked host memory beside device memory of the same size, so that small tensors travel in one copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusar_edge.runtime.device import Array, Device, aligned

Shape = tuple[int, ...]
Kind = tuple[Shape, np.dtype[Any]]


def staged_bytes(tensors: Mapping[str, Kind]) -> int:
    """Bytes of these tensors one after the other, each at an aligned address."""
    return sum(aligned(int(np.prod(shape)) * dtype.itemsize) for shape, dtype in tensors.values())


class Staging:
    """Inputs: `largest` tells every tensor at its largest shape."""

    def __init__(self, device: Device, largest: Mapping[str, Kind]) -> None:
        nbytes = staged_bytes(largest)
        self._device = device
        self._dtypes = {name: dtype for name, (_, dtype) in largest.items()}
        self._host = device.pinned((nbytes,), np.uint8)
        self._address = device.alloc(nbytes)

    def upload(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        """Pack, convert to the tensors' dtypes and enqueue one copy; name -> device address.

        The host memory is in use until the stream is waited for: once per run.
        """
        addresses, end = {}, 0
        for name, array in arrays.items():
            dtype = self._dtypes[name]
            nbytes = array.size * dtype.itemsize
            packed = self._host[end : end + nbytes].view(dtype).reshape(array.shape)
            np.copyto(packed, array, casting="unsafe")
            addresses[name] = self._address + end
            end += aligned(nbytes)
        self._device.copy_to_device(self._address, self._host[:end])
        return addresses


class Returned:
    """Outputs of fixed shapes."""

    def __init__(self, device: Device, tensors: Mapping[str, Kind]) -> None:
        nbytes = staged_bytes(tensors)
        self._device = device
        self._host = device.pinned((nbytes,), np.uint8)
        self._address = device.alloc(nbytes)
        self.addresses: dict[str, int] = {}
        """Name -> where the engine writes it."""
        self.host: dict[str, Array] = {}
        """Name -> its last content, once `fetch` was called and the stream was waited for."""
        start = 0
        for name, (shape, dtype) in tensors.items():
            end = start + int(np.prod(shape)) * dtype.itemsize
            self.addresses[name] = self._address + start
            self.host[name] = self._host[start:end].view(dtype).reshape(shape)
            start = aligned(end)
        self._end = end

    def fetch(self) -> None:
        """Enqueue one copy of all."""
        self._device.copy_to_host(self._host[: self._end], self._address)

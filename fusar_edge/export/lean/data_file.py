"""NAME.onnx.data, written from the front to the back: the weights of a graph, tensor by tensor (ONNX external data)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from fusar_edge.export.lean.skeleton import declare
from fusar_edge.runtime.adapters import Placed

INLINE = 1024
"""Bytes below which a tensor stands in the graph itself, as onnx.save_model has it."""
PAGE, LARGE = 4096, 1 << 20
"""A large tensor begins at a page of memory, so that it can be mapped; a small one at a multiple of 64 bytes."""


class Entry(msgspec.Struct, frozen=True):
    """Where a tensor is."""

    kind: int
    """ONNX element type."""
    shape: tuple[int, ...]
    offset: int = 0
    length: int = 0
    inline: bytes | None = None
    """The data itself, of a small tensor."""
    location: str = ""
    """Of the file, where it is another than the graph's own."""

    def proto(self, name: str, location: str) -> TensorProto:
        tensor = declare(TensorProto(), name, self.shape, self.kind)
        if self.inline is not None:
            tensor.data_location, tensor.raw_data = TensorProto.DEFAULT, self.inline
            return tensor
        for key, value in (
            ("location", self.location or location),
            ("offset", str(self.offset)),
            ("length", str(self.length)),
        ):
            tensor.external_data.add(key=key, value=value)
        return tensor


class DataFile:
    """The file and what lies in it. `entries` are those that are known already; what lies behind them is cut off.

    `apart`: tensors that have their places in another file, `location`, which is there.
    """

    def __init__(
        self, path: Path, entries: dict[str, Entry], apart: Mapping[str, Placed] = {}, location: str = ""
    ) -> None:
        self.path, self.entries, self.apart, self.location = path, dict(entries), apart, location
        self.file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self.file.truncate(max((e.offset + e.length for e in entries.values() if not e.location), default=0))
        self.file.seek(0, os.SEEK_END)

    def put(self, name: str, value: npt.NDArray[Any]) -> Entry:
        """Write a tensor of any layout, row by row of it."""
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        if name in self.apart:
            return self._put_apart(name, value, kind)
        if value.nbytes < INLINE:
            entry = Entry(kind, value.shape, inline=np.ascontiguousarray(value).tobytes())
            return self._known(name, entry)
        step = max(1, LARGE * 16 * len(value) // value.nbytes)
        return self.put_blocks(name, value.shape, kind, (value[i : i + step] for i in range(0, len(value), step)))

    def _put_apart(self, name: str, value: npt.NDArray[Any], kind: int) -> Entry:
        placed = self.apart[name]
        assert (placed.shape, value.dtype) == (value.shape, np.float32), f"{name} is {value.dtype} {value.shape}"
        with open(self.path.parent / self.location, "r+b") as file:
            file.seek(placed.offset)
            file.write(np.ascontiguousarray(value).data)
            file.flush()
            os.fsync(file.fileno())
        return self._known(name, Entry(kind, value.shape, placed.offset, value.nbytes, location=self.location))

    def put_blocks(self, name: str, shape: tuple[int, ...], kind: int, blocks: Iterable[npt.NDArray[Any]]) -> Entry:
        """Write a tensor that comes in blocks of its first axis, in order; never all of it is in memory."""
        size = math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
        grid = PAGE if size >= LARGE else 64
        offset = -(-self.file.tell() // grid) * grid
        self.file.seek(offset)
        for block in blocks:
            self.file.write(np.ascontiguousarray(block).data)
        assert self.file.tell() - offset == size, f"{name}: {self.file.tell() - offset} bytes of {size}"
        return self._known(name, Entry(kind, shape, offset, size))

    def alias(self, name: str, of: str) -> None:
        """The same bytes under a second name."""
        self._known(name, self.entries[of])

    def flush(self) -> None:
        """What was written is on the disk, and others can read it."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    def _known(self, name: str, entry: Entry) -> Entry:
        assert name not in self.entries, f"{name} is written twice"
        self.entries[name] = entry
        return entry

    def protos(self, names: Iterable[str]) -> list[TensorProto]:
        """Declarations of those of the tensors that are here."""
        return [self.entries[name].proto(name, self.path.name) for name in names if name in self.entries]

"""Part `device`: buffers, copies, the stream and the KV cache's layout through the runtime's device, and bandwidths."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import old_python  # noqa: F401  first: fusar_edge needs its names
from measure import summary, timed
from record import Record

from fusar_edge.runtime.cache import KvCache
from fusar_edge.runtime.device import Device, open_device

ROWS = {"tiny": (6, 2, 1, 2, 64), "3b": (36, 2, 1, 2, 128), "7b": (28, 2, 1, 4, 128)}
"""A token's keys and values in whole models: layers, 2, batch, key heads, head size."""


def copies(device: Device, nbytes: int) -> dict[str, Any]:
    """Random bytes to the device and back, at an odd offset too; raises AssertionError where one differs."""
    noise = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
    with device:
        address = device.alloc(nbytes + 256)
        sent, received = device.pinned((nbytes,), np.uint8), device.pinned((nbytes,), np.uint8)
        sent[:] = noise
        for offset in (0, 256, 4):
            received[:] = 0
            device.copy_to_device(address + offset, sent)
            device.copy_to_host(received, address + offset)
            device.synchronise()
            assert np.array_equal(received, noise), f"what came back from offset {offset} is not what was sent"
        device.free(address)
    return {"bytes": nbytes, "offsets": [0, 256, 4], "equal": True}


def cache_layout(device: Device, row: tuple[int, ...], capacity: int = 512) -> dict[str, Any]:
    """Append, forget and append again in one device buffer, against the KvCache of the CPU as oracle."""
    generator, oracle = np.random.default_rng(1), KvCache(capacity, row, np.float16)
    row_bytes = oracle.buffer[0].nbytes
    with device:
        base = device.alloc(capacity * row_bytes)
        staged = device.pinned((capacity, *row), np.float16)
        received = device.pinned((capacity, *row), np.float16)
        for new, keep in ((350, None), (1, None), (1, None), (40, 350), (1, None), (120, 391)):
            if keep is not None:
                oracle.truncate(keep)
            staged[:new] = generator.normal(size=(new, *row))
            oracle.next_rows(new)[:] = staged[:new]
            device.copy_to_device(base + oracle.length * row_bytes, staged[:new])
            oracle.advance(new)
            device.copy_to_host(received[: oracle.length], base)
            device.synchronise()
            assert np.array_equal(received[: oracle.length], oracle.past()), f"rows differ after appending {new}"
        device.free(base)
    return {"row_bytes": row_bytes, "capacity": capacity, "appends": 6, "equal": True}


def round_trip(device: Device, seconds: float) -> dict[str, Any]:
    """One token's traffic without an engine: 12 bytes up, 4 down, one wait."""
    with device:
        address, host = device.alloc(256), device.pinned((3,), np.int32)

        def turn() -> None:
            device.copy_to_device(address, host)
            device.copy_to_host(host[:1], address)
            device.synchronise()

        taken = timed(turn, seconds)
        device.free(address)
    return {"ms": summary(taken), "observations_ms": taken}


def host_bandwidth(device: Device, nbytes: int, seconds: float) -> dict[str, Any]:
    """GB/s of page-locked copies each way."""
    found: dict[str, Any] = {"bytes": nbytes}
    with device:
        address, host = device.alloc(nbytes), device.pinned((nbytes,), np.uint8)

        def up() -> None:
            device.copy_to_device(address, host)
            device.synchronise()

        def down() -> None:
            device.copy_to_host(host, address)
            device.synchronise()

        for name, copy in (("to_device", up), ("to_host", down)):
            taken = timed(copy, seconds, warmup=2)
            found[name] = {"gb_s": nbytes / np.median(taken) / 1e6, "observations_ms": taken}
        device.free(address)
    return found


def copy_bandwidth(device: Device, nbytes: int = 2 << 30, repeats: int = 30) -> dict[str, Any]:
    """GB/s of copies inside the GPU's memory, bytes read plus bytes written, by events. PyCUDA only."""
    cuda = importlib.import_module("pycuda.driver")

    with device:
        source, target = device.alloc(nbytes), device.alloc(nbytes)
        stream, taken = cuda.Stream(), []
        cuda.memset_d32_async(source, 0x3C7A91E5, nbytes // 4, stream)
        for _ in range(repeats + 3):
            start, end = cuda.Event(), cuda.Event()
            start.record(stream)
            cuda.memcpy_dtod_async(target, source, nbytes, stream)
            end.record(stream)
            end.synchronize()
            taken.append(start.time_till(end))
        device.free(source)
        device.free(target)
    return {"bytes": nbytes, "gb_s": 2 * nbytes / np.median(taken[3:]) / 1e6, "observations_ms": taken[3:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true", help="on the NumPy device")
    given = parser.parse_args()
    dry = given.dry_run
    device = open_device("numpy" if dry else "pycuda")
    record = Record("device", given.out, device=type(device).__name__, **({} if dry else gpu_facts()))
    size, seconds = (1 << 16, 0.02) if dry else (256 << 20, 2.0)
    record.run("copies", lambda: copies(device, size))
    for name, row in ROWS.items():
        if not dry or name == "tiny":
            record.run(f"cache_{name}", partial(cache_layout, device, row))
    record.run("round_trip", lambda: round_trip(device, seconds))
    record.run("host_bandwidth", lambda: host_bandwidth(device, size, seconds))
    if not dry:
        record.run("copy_bandwidth", lambda: copy_bandwidth(device))
    device.close()


def gpu_facts() -> dict[str, Any]:
    from fusar_edge.runtime.trt_api import device_facts

    facts = device_facts()
    return {name: getattr(facts, name) for name in ("name", "compute_capability", "memory_bytes", "driver")}


if __name__ == "__main__":
    main()

"""Devices without a GPU: the NumPy one's strictness, PyCUDA's calls on a stand-in, cuda-python over a fake driver."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusar_edge.errors import DeviceError, InputError, MissingExtraError
from fusar_edge.runtime import device as device_module
from fusar_edge.runtime.device import Device, aligned, open_device
from fusar_edge.runtime.device_numpy import NumpyDevice
from fusar_edge.runtime.device_pycuda import PycudaDevice
from fusar_edge.runtime.trt_api import driver_problem


def round_trip(device: Device) -> None:
    """What every device must do; the same lines run over the fake driver below."""
    with device:
        address = device.alloc(1000)
        there, back = device.pinned((10,), np.float32), device.pinned((2, 5), np.float16)
        assert (address % 256, there.shape, back.shape, back.dtype) == (0, (10,), (2, 5), np.float16)
        there[:] = np.arange(10)
        device.copy_to_device(address, there)
        device.copy_to_host(back[1], address + 4)
        back[:] = -1
        device.synchronise()
        assert back[0].tolist() == [-1] * 5
        assert back[1].view(np.uint8).tobytes() == there.tobytes()[4:14]
        assert (device.allocations, device.synchronisations) == (3, 1)
        device.free(address)
        with pytest.raises(DeviceError, match="1099511627776"):
            device.alloc(1 << 40)
        heard: list[Exception] = []

        def other() -> None:
            for call in (device.synchronise, lambda: device.alloc(1), device.__enter__):
                try:
                    call()
                except DeviceError as problem:
                    heard.append(problem)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert ["by the thread that opened it" in str(problem) for problem in heard] == [True] * 3
    device.close()
    device.close()


def recording(device: Device) -> None:
    """What a device that can record must do; also over the fake driver below."""
    with device:
        address = device.alloc(4)
        there, back = device.pinned((1,), np.float32), device.pinned((1,), np.float32)

        def job() -> None:
            device.copy_to_device(address, there)
            device.copy_to_host(back, address)

        there[:], back[:] = 1, 0
        launch = device.record(job)
        device.synchronise()
        assert back[0] == 0  # recorded, not done
        for value in (2, 3):
            there[:] = value
            launch()
            device.synchronise()
            assert back[0] == value
        with pytest.raises(ZeroDivisionError):
            device.record(lambda: 1 / 0)  # type: ignore[arg-type, return-value]  # what fails while recording
        there[:] = 4
        job()  # the stream is usable again
        device.synchronise()
        assert back[0] == 4
    device.close()


def test_the_numpy_device_does_what_a_device_must() -> None:
    round_trip(open_device("numpy"))
    recording(open_device("numpy"))


def test_the_numpy_device_hands_out_poison_and_poisons_what_is_freed() -> None:
    device = NumpyDevice()
    with device:
        one, two = device.alloc(16), device.alloc(16)
        view = device.view(one, 16).view(np.float32)
        assert np.isnan(view).all()
        view[:] = 1
        device.free(one)
        assert np.isnan(view).all()
        assert device.alloc(16) > two
        with pytest.raises(DeviceError, match="was not allocated"):
            device.free(one)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 17), (16, 1), (-1, 1), (-(1 << 40), 1), (1 << 40, 1)])
def test_an_access_outside_its_allocation_is_an_error(offset: int, nbytes: int) -> None:
    device = NumpyDevice()
    with device:
        address = device.alloc(16)
        device.alloc(16)
        with pytest.raises(DeviceError, match="illegal memory access"):
            device.view(address + offset, nbytes)


def test_the_numpy_device_wants_page_locked_memory_and_a_context() -> None:
    device = NumpyDevice(memory_bytes=1000)
    with device:
        address, pageable = device.alloc(900), np.zeros(4, np.float32)
        with pytest.raises(DeviceError, match="page-locked"):
            device.copy_to_device(address, pageable)
        with pytest.raises(DeviceError, match="cannot allocate 101 bytes: 100 of device memory are free"):
            device.alloc(101)
    with pytest.raises(DeviceError, match="no context is current"):
        device.synchronise()


def test_a_copy_reads_its_source_when_the_stream_is_waited_for() -> None:
    device = NumpyDevice()
    with device:
        address, array = device.alloc(4), device.pinned((1,), np.float32)
        array[:] = 1
        device.copy_to_device(address, array)
        array[:] = 2
        device.synchronise()
        assert device.view(address, 4).view(np.float32)[0] == 2


def test_addresses_are_rounded_up_to_what_tensorrt_wants() -> None:
    assert [aligned(n) for n in (0, 1, 256, 257)] == [0, 256, 256, 512]


def test_a_device_that_is_unknown_not_installed_or_without_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="allowed: auto, pycuda, cuda-python, numpy"):
        open_device("tpu")
    monkeypatch.setattr(device_module, "_installed", lambda package: False)
    for kind in ("auto", "pycuda", "cuda-python"):
        with pytest.raises(MissingExtraError, match=r"pip install 'fusar-edge\[jetson\]'"):
            open_device(kind)
    monkeypatch.setattr(device_module, "_installed", lambda package: True)
    if driver_problem() is not None:
        with pytest.raises(DeviceError, match="device 'pycuda' needs an NVIDIA GPU"):
            open_device()


class FakePycuda:
    """pycuda.driver as its sources have it (2026.1, wrap_cudadrv.cpp), on the NumPy device."""

    class Error(Exception): ...

    def __init__(self) -> None:
        self.memory = NumpyDevice()
        self.stack: list[object] = []
        self.freed: list[int] = []
        self.detached = 0
        self.initialised = False

    def init(self) -> None:
        self.initialised = True

    def Device(self, number: int) -> Any:
        assert self.initialised
        assert number == 0
        outer = self

        class Context:
            def push(self) -> None:
                outer.stack.append(self)
                outer.memory.__enter__()

            def detach(self) -> None:
                assert not outer.stack
                outer.detached += 1

            @staticmethod
            def pop() -> None:
                outer.stack.pop()
                outer.memory.__exit__(None, None, None)

        return type("Device", (), {"retain_primary_context": lambda self: Context()})()

    def Stream(self, flags: int = 0) -> Any:
        return type("Stream", (), {"handle": 0x51, "synchronize": lambda _: self.memory.synchronise()})()

    def mem_alloc(self, nbytes: int) -> Any:
        try:
            address = self.memory.alloc(nbytes)
        except DeviceError:
            raise self.Error("cuMemAlloc failed: out of memory") from None
        return type(
            "DeviceAllocation", (), {"__int__": lambda _: address, "free": lambda _: self.memory.free(address)}
        )()

    def pagelocked_empty(self, shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        array = self.memory.pinned(shape, dtype)
        outer = self

        class PagelockedHostAllocation:
            __array_interface__ = array.__array_interface__

            def free(self) -> None:
                outer.freed.append(array.nbytes)

        return np.asarray(PagelockedHostAllocation())

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: Any = None) -> None:
        assert stream.handle == 0x51
        self.memory.copy_to_device(dest, src)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: Any = None) -> None:
        assert stream.handle == 0x51
        self.memory.copy_to_host(dest, src)


def test_pycuda_is_called_as_its_sources_have_it_and_no_context_is_left_on_the_stack() -> None:
    cuda = FakePycuda()
    device = PycudaDevice(cuda)
    assert (device.stream, cuda.stack) == (0x51, [])
    with device:
        kept = device.alloc(8)
        device.pinned((3,), np.float32)
    device.close()
    with cuda.memory, pytest.raises(DeviceError):
        cuda.memory.view(kept, 1)
    assert (cuda.stack, cuda.freed, cuda.detached) == ([], [12], 1)
    round_trip(PycudaDevice(FakePycuda()))
    with pytest.raises(DeviceError, match="no capture of a stream; cuda-python has"):
        PycudaDevice(FakePycuda()).record(lambda: None)


def undefined_driver_calls(package: str) -> list[str]:
    """Those of PyCUDA's extension, which is linked to the driver, so that all of them must be there."""
    spec = importlib.util.find_spec(package)
    if package != "pycuda" or spec is None or not spec.origin:
        return []
    (extension,) = Path(spec.origin).parent.glob("_driver*.so")
    listed = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    return re.findall(r"\bcu[A-Z]\w*", listed.stdout)


@pytest.mark.parametrize(("kind", "package"), [("pycuda", "pycuda"), ("cuda-python", "cuda.bindings")])
def test_the_real_package_does_what_a_device_must_over_a_driver_of_host_memory(
    tmp_path: Path, kind: str, package: str
) -> None:
    if not device_module._installed(package):
        pytest.skip(f"{kind} is not installed")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the fake driver")
    here, library = Path(__file__).parent, tmp_path / "libcuda.so.1"
    text = (here / "fake_libcuda.c").read_text()
    absent = [name for name in undefined_driver_calls(package) if f"int {name}(" not in text]
    (tmp_path / "driver.c").write_text(text + "".join(f"int {name}(void) {{ return 801; }}\n" for name in absent))
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([compiler, *flags, str(tmp_path / "driver.c"), "-ldl"], check=True)
    names = ("round_trip", "recording") if kind == "cuda-python" else ("round_trip",)
    code = (
        "import test_trt_runtime_device as t; from fusar_edge.runtime.device import open_device; "
        f"[getattr(t, name)(open_device({kind!r})) for name in {names!r}]"
    )
    path = os.pathsep.join([str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

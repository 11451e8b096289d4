"""What a machine without a GPU, or with another one, is told; driver libraries are made with gcc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from trt_stubs.bindings import HERE, ROOT

from fusar_edge.errors import DeviceError
from fusar_edge.runtime import trt_api
from fusar_edge.runtime.trt_api import DeviceFacts

GPU_SPEC = "jetson-agx-orin-64gb"


def run(*arguments: str, cwd: Path, libraries: Path) -> subprocess.CompletedProcess[str]:
    """In a process where libcuda.so.1, should there be any, is that of `libraries`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False)


def told(libraries: Path, question: str = "driver_problem()") -> str:
    code = f"from fusar_edge.runtime.trt_api import *; print({question})"
    done = run("-W", "error", "-c", code, cwd=libraries, libraries=libraries)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def driver(folder: Path, *flags: str) -> Path:
    """A libcuda.so.1 compiled from trt_stubs/libcuda.c."""
    if shutil.which("gcc") is None:
        pytest.skip("the stub driver needs gcc")
    library = folder / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", *flags, "-o", str(library), str(HERE / "libcuda.c")], check=True)
    return folder


def test_building_for_a_gpu_without_a_driver_ends_with_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "libcuda.so.1"
    broken.write_bytes(b"no library")  # so that a machine with a GPU is as one without
    done = run("-m", "fusar_edge", "build", GPU_SPEC, "--onnx", "x", "--out", "b", cwd=tmp_path, libraries=tmp_path)
    assert done.returncode == 2
    assert "needs an NVIDIA GPU: the NVIDIA driver is not installed" in done.stderr
    assert "on the device itself" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "None"),
        (["-DINIT=34"], "the NVIDIA driver does not start (cuInit: CUDA_ERROR_STUB_LIBRARY)"),
        (["-DINIT=999"], "the NVIDIA driver does not start (cuInit: CUDA error 999)"),
        (["-DCOUNT=0"], "the NVIDIA driver finds no GPU"),
        (["-DcuInit=no_cuInit"], "the NVIDIA driver does not start (libcuda.so.1: undefined symbol: cuInit)"),
    ],
)
def test_a_driver_is_asked_before_it_is_trusted(tmp_path: Path, flags: list[str], problem: str) -> None:
    answer = told(driver(tmp_path, *flags))
    assert answer.replace(str(tmp_path) + "/", "") == problem


def test_the_first_gpu_is_described(tmp_path: Path) -> None:
    expected = DeviceFacts("Orin", "8.7", 64 << 30, 50 << 30, "13.2")
    assert told(driver(tmp_path), "device_facts()") == repr(expected)


def test_its_context_is_given_back_when_a_question_fails(tmp_path: Path) -> None:
    library = driver(tmp_path, "-DMEMINFO=2")
    code = (
        "import ctypes, fusar_edge.runtime.trt_api as api\n"
        "try: api.device_facts()\n"
        "except api.DeviceError as error: print(error)\n"
        "print(ctypes.CDLL('libcuda.so.1').contexts())"
    )
    done = run("-c", code, cwd=tmp_path, libraries=library)
    assert done.stdout.splitlines()[0].startswith("the NVIDIA driver does not describe its first GPU (cuMemGetInfo_v2")
    assert done.stdout.splitlines()[1] == "0"


def test_a_machine_with_a_driver_and_no_tensorrt_is_told_where_to_get_it(tmp_path: Path) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    library = driver(tmp_path)
    done = run("-m", "fusar_edge", "build", GPU_SPEC, "--onnx", "x", "--out", "b", cwd=tmp_path, libraries=library)
    assert done.returncode == 2
    assert "TensorRT for Python is not installed" in done.stderr
    assert "python3-libnvinfer" in done.stderr


def test_a_tensorrt_that_does_not_load_or_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, message in (
        ("import ctypes; ctypes.CDLL('libnvinfer.so.none')", "does not load"),
        ("__version__ = '8.5.3'", "TensorRT 8.5.3 is too old: install 8.6 or later"),
    ):
        (tmp_path / "tensorrt.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        with pytest.raises(DeviceError, match=message):
            trt_api.open_tensorrt(need_driver=False)
    sys.modules.pop("tensorrt", None)


def test_nothing_is_told_from_something() -> None:
    assert trt_api.checked(0, "a thing") == 0
    with pytest.raises(DeviceError, match="TensorRT could not make a thing"):
        trt_api.checked(None, "a thing")
    with pytest.raises(TypeError, match="at most"):  # our own mistake stays one
        trt_api.constructed({}.get, "a thing", 1, 2, 3)

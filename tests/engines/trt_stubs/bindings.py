"""The real Python bindings of several TensorRTs, importable in a process of their own over stub libraries.

The wheels (1 to 2 MB each) come through pip; nothing is installed. A machine without gcc or without the wheels skips,
but for CI, where both must be there.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
HERE = Path(__file__).parent

WHEELS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.16": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers")

_FOLDER = tempfile.TemporaryDirectory(prefix="fusar-edge-trt-")


def absent(reason: str) -> None:
    """Skip; in CI, fail. TensorRT 8.6 has wheels for Python 3.11 and older only."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def stub_libraries() -> Path:
    folder = Path(_FOLDER.name) / "stubs"
    folder.mkdir()
    compiled = folder / "libnv.so"
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(compiled), str(HERE / "libnv.c")]
    if shutil.which("gcc") is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        absent("the stub libraries need gcc on Linux, x86-64")
    subprocess.run(command, check=True)
    for major in (8, 10, 11):
        for name in LIBRARIES:
            shutil.copyfile(compiled, folder / f"lib{name}.so.{major}")
    return folder


@functools.cache
def binding_folder(version: str) -> Path | str:
    """Folder to put on PYTHONPATH, or why there is none."""
    folder = Path(_FOLDER.name) / version
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), WHEELS[version]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        return f"pip cannot download {WHEELS[version]}: {done.stderr.strip().splitlines()[-1:]}"
    zipfile.ZipFile(wheels[0]).extractall(folder)
    return folder


def asked(version: str, questions: dict[str, Any]) -> dict[str, Any]:
    """What `probe.py` answers in a process with the bindings of one version; a warning there is an error."""
    if version == "8.6" and sys.version_info >= (3, 12):
        pytest.skip("TensorRT 8.6 has no bindings for Python 3.12 and later")
    folder = binding_folder(version)
    if isinstance(folder, str):
        absent(folder)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        "LD_LIBRARY_PATH": str(stub_libraries()),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "probe.py")],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers

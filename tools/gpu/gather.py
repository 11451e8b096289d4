"""Collects what a GPU machine without network lacks, as folders that pack.py packs.

    python tools/gpu/gather.py session  --out tools/gpu/out/store --python312 python3.12
    python tools/gpu/gather.py tensorrt --out tools/gpu/out/store --python310 python3.10

session: packages for the machine's own Python 3.12 (PyCUDA, and the exporter's transformers), a folder for PYTHONPATH.
tensorrt: TensorRT 8.6.0, whose one complete wheel is for CPython 3.10, and with it such a Python without what a session
does not need (tests, IDLE, Tk, pip), NumPy, PyCUDA and the device side's packages. Start it by its `bin/python`.
TensorRT's libraries travel as they are: its licence allows no change. Run on Linux x86-64 with gcc, nm and zstd.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
DEVICE = ("msgspec==0.22.0", "tokenizers==0.22.2", "typing-extensions==4.16.0")
PYCUDA_NEEDS = ("pytools==2026.1.1", "platformdirs==4.3.8", "siphash24==1.9")
SESSION = (
    *DEVICE,
    *PYCUDA_NEEDS,
    "transformers==4.57.6",
    "huggingface-hub==0.36.2",
    "optimum==2.1.0",
    "optimum-onnx==0.1.0",
)
TENSORRT = (*DEVICE, *PYCUDA_NEEDS, "tomli==2.5.0", "numpy==2.2.6", "tensorrt==8.6.0")
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "pydoc_data"}
"""Folders of a Python's standard library, and of NumPy, that no session imports."""
LEFT_OUT_FILES = ("__pycache__", "config-*", "site-packages", "sqlite3", "_sqlite3*", "_tkinter*", "_test*", "*.a",
                  "_ssl*", "_hashlib*", "nis.*", "readline*", "_curses*", "_dbm*", "_gdbm*")  # fmt: skip
"""And modules with large libraries of their own; hashlib has its SHA-256 without OpenSSL."""
STUBBED = ("libcublas.so.12", "libcublasLt.so.12", "libcudnn.so.8")
"""What TensorRT's plugin library links and, as no graph of ours has a plugin, nothing calls."""


def session(out: Path, python: str) -> Path:
    """OUT/session: site-packages for Python 3.12."""
    folder = fresh(out / "session")
    install(folder, SESSION, "3.12", pycuda_wheel(out, python, "cp312"))
    return folder


def tensorrt(out: Path, python: str) -> Path:
    """OUT/tensorrt: a Python 3.10 of its own, with TensorRT 8.6.0."""
    folder = fresh(out / "tensorrt")
    site = trimmed_python(python, folder)
    install(site, TENSORRT, "3.10", pycuda_wheel(out, python, "cp310"))
    for tests in [path for path in (site / "numpy").rglob("tests") if path.is_dir()]:
        shutil.rmtree(tests)
    write_stubs(site / "tensorrt" / "libnvinfer_plugin.so.8", site / "tensorrt")
    found = run([str(folder / "bin" / "python"), "-c", "import tensorrt, numpy; print(tensorrt.__version__)"])
    if found.strip() != "8.6.0":
        raise SystemExit(f"{folder}: the Python that was gathered imports tensorrt {found!r}")
    return folder


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pycuda_wheel(out: Path, python: str, tag: str) -> Path:
    """The wheel for one ABI, built once and kept in OUT/wheels."""
    wheels = out / "wheels"
    if not list(wheels.glob(f"pycuda-*-{tag}-*.whl")):
        subprocess.run(["sh", str(HERE / "make_pycuda_wheel.sh"), python, str(wheels)], check=True)
    return next(wheels.glob(f"pycuda-*-{tag}-*.whl"))


def install(site: Path, packages: tuple[str, ...], version: str, *wheels: Path) -> None:
    """Unpack wheels for Linux x86-64 and that Python into `site`; nothing of theirs is run."""
    downloads = site / ".wheels"
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    subprocess.run([*pip, "--python-version", version, *platforms, "-d", str(downloads), *packages], check=True)
    for wheel in (*downloads.glob("*.whl"), *wheels):
        zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(downloads)


def trimmed_python(python: str, folder: Path) -> Path:
    """Copy an interpreter with its standard library into `folder`; returns its empty site-packages.

    bin/python is a script that sets the library path and home, so that the folder runs from any place.
    """
    ask = "import sys; print(sys.base_prefix); print(sys.version_info[:2] == (3, 10))"
    prefix, right = run([python, "-c", ask]).split()
    if right != "True":
        raise SystemExit(f"{python} is not Python 3.10, the one that the wheel of TensorRT 8.6.0 is for")
    name, source = "python3.10", Path(prefix)
    skip = shutil.ignore_patterns(*LEFT_OUT, *LEFT_OUT_FILES)
    shutil.copytree(source / "lib" / name, folder / "lib" / name, ignore=skip)
    (folder / "bin").mkdir()
    shutil.copy(source / "bin" / name, folder / "bin" / name)
    for binary in (folder / "bin" / name, *(folder / "lib" / name / "lib-dynload").glob("*.so")):
        for library in re.findall(r"=> (\S+) \(", run(["ldd", str(binary)])):
            if not re.match(r"(libc|libm|libpthread|libdl|librt|libutil|libresolv|ld-linux.*)[.-]", Path(library).name):
                shutil.copy(library, folder / "lib" / Path(library).name)
    start = folder / "bin" / "python"
    start.write_text(
        '#!/bin/sh\nhome=$(cd "$(dirname "$0")/.." && pwd)\n'
        "PYTHONHOME=$home PYTHONNOUSERSITE=1 LD_LIBRARY_PATH=$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n"
        'export PYTHONHOME PYTHONNOUSERSITE LD_LIBRARY_PATH\nexec "$home/bin/python3.10" "$@"\n'
    )
    start.chmod(0o755)
    site = folder / "lib" / name / "site-packages"
    site.mkdir()
    return site


def write_stubs(needs: Path, folder: Path) -> None:
    """Libraries that have what `needs` takes of cuBLAS and cuDNN, under the same versions; each call fails with 15.

    15 is CUBLAS_STATUS_NOT_SUPPORTED, and an error of cuDNN 8 too.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for symbol, version in re.findall(r" U (\w+)@(\S+)", run(["nm", "-D", "--undefined-only", str(needs)])):
        wanted[version].append(symbol)
    for library in STUBBED:
        code = "\n".join(f"int {symbol}(void) {{ return 15; }}" for symbol in wanted[library])
        script = folder / f"{library}.map"
        script.write_text(f"{library} {{ global: *; }};\n")
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(folder / library), f"-Wl,-soname,{library}"]
        subprocess.run([*command, f"-Wl,--version-script={script}", "-"], input=code, text=True, check=True)
        script.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("session", "tensorrt"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python312", default="python3.12")
    parser.add_argument("--python310", default="python3.10")
    given = parser.parse_args()
    made = session(given.out, given.python312) if given.what == "session" else tensorrt(given.out, given.python310)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{made}: {size / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

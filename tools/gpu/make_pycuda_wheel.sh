#!/bin/sh
# Builds a wheel of pycuda for one Python, with no GPU, no driver and no CUDA toolkit installed.
#   tools/gpu/make_pycuda_wheel.sh PYTHON OUT
# PYTHON: interpreter whose ABI the wheel gets (python3.12 for the GPU machine's own, python3.10 beside TensorRT 8.6).
# OUT: folder that receives pycuda-*.whl. Needs a C++ compiler and the Python package registry.
set -eu

PYCUDA=2026.1
# CUDA 12.9: its calls are versioned symbols that later drivers (580, CUDA 13) keep.
HEADERS="nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-cccl-cu12==12.9.27
         nvidia-cuda-profiler-api-cu12==12.9.79"

[ $# -eq 2 ] || { echo "usage: $0 PYTHON OUT" >&2; exit 2; }
python=$(command -v "$1") || { echo "$1: no such interpreter; give python3.12 or a path" >&2; exit 2; }
mkdir -p "$2"
out=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$python" -m venv build
build/bin/pip install -q setuptools wheel 'numpy>=2' pytools platformdirs mako
build/bin/pip download -q --no-deps --only-binary=:all: --platform manylinux2014_x86_64 -d headers $HEADERS
for wheel in headers/*.whl; do build/bin/python -m zipfile -e "$wheel" cuda; done
build/bin/pip download -q --no-deps --no-build-isolation --no-binary=pycuda -d . "pycuda==$PYCUDA"
tar -xzf "pycuda-$PYCUDA.tar.gz"

# The driver's library comes with the driver. An empty one of its name is enough to link; --no-as-needed keeps the
# dependency, so that a machine without driver says "libcuda.so.1: cannot open shared object file".
mkdir stub
echo '' | gcc -shared -x c -Wl,-soname,libcuda.so.1 -o stub/libcuda.so -

cd "pycuda-$PYCUDA"
cat >siteconf.py <<CONF
CUDA_INC_DIR = ["$work/cuda/nvidia/" + part + "/include"
                for part in ("cuda_runtime", "cuda_nvcc", "cuda_cccl", "cuda_profiler_api")]
CUDA_ENABLE_GL = False
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$work/stub"]
CUDADRV_LIBNAME = ["cuda"]
CXXFLAGS = ["-O2", "-g0", "-w"]
LDFLAGS = ["-s"]
CONF
# In the environment, not in siteconf: those flags come after -lcuda, too late to keep it.
LDFLAGS=-Wl,--no-as-needed "$work/build/bin/pip" wheel -q --no-deps --no-build-isolation -w "$out" .
ls -l "$out"/pycuda-*.whl

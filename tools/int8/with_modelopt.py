"""Quantises one graph with nvidia-modelopt, in a Python that has it and not necessarily fusar-edge.

    python3 -m venv /tmp/modelopt
    /tmp/modelopt/bin/pip install torch==2.13.0
    /tmp/modelopt/bin/pip install --no-deps nvidia-modelopt==0.47.0
    /tmp/modelopt/bin/pip install 'onnx~=1.21.0' 'onnxruntime~=1.24.2' onnxslim polygraphy onnx_graphsurgeon \
        onnxconverter-common onnxscript ml_dtypes lief==1.0.0 pulp pydantic pyyaml omegaconf regex rich safetensors \
        scipy tqdm ninja nvidia-ml-py packaging numpy cppimport
    /tmp/modelopt/bin/python tools/int8/with_modelopt.py fp32.onnx feeds.npz max int8.onnx --exclude vision.patch_embed

--no-deps, since its extra [onnx] asks for onnxruntime-gpu and CuPy (CUDA, gigabytes); a CPU calibrates without either.
feeds.npz holds `K/INPUT` for run K of the graph. The last line printed is JSON: the seconds that quantising took.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Feeds = dict[str, npt.NDArray[Any]]


class Batches:
    """The calibration data reader that modelopt asks for: ONNX Runtime's, with `get_first` and `rewind`."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.feeds)

    def get_next(self) -> Feeds | None:
        return next(self.left, None)

    def get_first(self) -> Feeds:
        return self.feeds[0]


def quantised_file(
    source: Path, out: Path, method: str, feeds: Sequence[Feeds], exclude: Sequence[str] = (), only: Sequence[str] = ()
) -> None:
    """Write `out`: INT8 Q/DQ where modelopt puts it, or at the nodes in `only`, never at those in `exclude`.

    All else stays FP32, where modelopt would make it FP16.
    `dq_only` stores weights as INT8; without it they stay FP32 behind Q/DQ, and the file is as large as it was.
    """
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        calibration_method=method,
        calibration_data_reader=Batches(feeds),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        dq_only=True,
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in exclude],
        nodes_to_quantize=[f"^{re.escape(name)}$" for name in only],
        output_path=str(out),
        log_level="WARNING",
    )


def read_feeds(path: Path) -> list[Feeds]:
    runs: dict[int, Feeds] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, name = key.split("/", 1)
            runs.setdefault(int(number), {})[name] = arrays[key]
    return [runs[number] for number in sorted(runs)]


def write_feeds(path: Path, feeds: Sequence[Feeds]) -> None:
    """Uncompressed: one key per run and input."""
    np.savez(path, **{f"{number}/{name}": value for number, feed in enumerate(feeds) for name, value in feed.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("method", help="max or entropy; modelopt takes any other word for max")
    parser.add_argument("out", type=Path)
    parser.add_argument("--exclude", nargs="*", default=[], help="names of nodes")
    parser.add_argument("--only", nargs="*", default=[], help="names of nodes")
    given = parser.parse_args()
    import modelopt.onnx.quantization  # first: seconds of importing are no seconds of quantising

    start = time.perf_counter()
    quantised_file(given.graph, given.out, given.method, read_feeds(given.feeds), given.exclude, given.only)
    print(json.dumps({"seconds": time.perf_counter() - start, "modelopt": modelopt.__version__}))


if __name__ == "__main__":
    main()

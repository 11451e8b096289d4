"""The same FP32 graph, calibrated on the same feeds, made INT8 by fusar-edge, ONNX Runtime and nvidia-modelopt."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import onnx
from with_modelopt import Batches, Feeds, write_feeds

from fusar_edge.calib.qdq import Linear, half_embeddings, linears, quantised, reaches, save_graph
from fusar_edge.calib.ranges import collect_ranges
from fusar_edge.specs import RangeSpec

OPERATORS = ["MatMul", "Gemm", "Conv"]


@dataclass(frozen=True)
class Source:
    """One FP32 graph and what all of them are told."""

    path: Path
    feeds: Sequence[Feeds]
    layers: list[Linear]
    """That may become INT8."""
    kept: list[str]
    """Names of the linears that may not."""


Maker = Callable[[Source, Path], float]
"""(source, file to write) -> seconds that it took."""


def source(path: Path, feeds: Sequence[Feeds], keep: Sequence[str], anchored: bool) -> Source:
    """`keep`: patterns of linears. Without anchors in the feeds, what they alone reach is kept too: it has no range."""
    model = onnx.load(path)
    seen = reaches(model, "pixels") if "pixels" in feeds[0] and not anchored else None
    found = linears(model)
    layers = [
        layer
        for layer in found
        if not any(fnmatchcase(layer.name, pattern) for pattern in keep) and (seen is None or layer.activation in seen)
    ]
    return Source(path, feeds, layers, [layer.name for layer in found if layer not in layers])


def makers(percentile: float, modelopt_python: Path | None) -> dict[str, Maker]:
    """Quantiser, as the table names it -> what runs it."""
    from onnxruntime.quantization import CalibrationMethod

    share = {"CalibPercentile": percentile}
    found: dict[str, Maker] = {
        f"fusar-edge, {percentile} %": by_fusar_edge(RangeSpec(percentile=percentile)),
        "fusar-edge, max": by_fusar_edge(RangeSpec(method="max")),
        "onnxruntime, MinMax": by_onnxruntime(CalibrationMethod.MinMax),
        f"onnxruntime, {percentile} %": by_onnxruntime(CalibrationMethod.Percentile, **share),
        f"onnxruntime, {percentile} %, inputs only": by_onnxruntime(
            CalibrationMethod.Percentile,
            **share,
            OpTypesToExcludeOutputQuantization=OPERATORS,
            DedicatedQDQPair=True,
        ),
    }
    if modelopt_python is not None:
        found |= {f"modelopt, {method}": by_modelopt(modelopt_python, method) for method in ("max", "entropy")}
        found["modelopt, max, these linears only"] = by_modelopt(modelopt_python, "max", only=True)
    return found


def by_fusar_edge(spec: RangeSpec) -> Maker:
    """As `calibrate` writes a graph, embeddings in FP16 included."""

    def make(given: Source, out: Path) -> float:
        start = time.perf_counter()
        ranges = collect_ranges(given.path, [layer.activation for layer in given.layers], given.feeds, spec)
        chosen = [layer for layer in given.layers if ranges[layer.activation]]
        result = quantised(onnx.load(given.path), chosen, ranges)
        half_embeddings(result)
        save_graph(result, out)
        return time.perf_counter() - start

    return make


class Strided(Batches):
    """With what quantize_static's stride asks for.

    Batches of different lengths (a decoder's) need it for any method but MinMax: told all at once, the histogram
    calibraters stack them (ValueError: inhomogeneous shape).
    """

    def __len__(self) -> int:
        return len(self.feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.left = iter(self.feeds[start_index:end_index])


def by_onnxruntime(method: object, **options: object) -> Maker:
    """quantize_static, symmetric INT8 both ways, weights per channel, on the same layers; shapes inferred before."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def make(given: Source, out: Path) -> float:
        start = time.perf_counter()
        prepared = out.with_suffix(".prepared.onnx")
        with contextlib.redirect_stdout(io.StringIO()), _without_advice():
            # Optimising here would merge and rename the nodes that are to be kept.
            quant_pre_process(given.path, prepared, skip_optimization=True, auto_merge=True)
            quantize_static(
                prepared,
                out,
                Strided(given.feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                nodes_to_quantize=[layer.name for layer in given.layers],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "CalibStridedMinMax": 1} | options,
            )
        prepared.unlink()
        return time.perf_counter() - start

    return make


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """quantize_static advises to run the pre-processing that it was run on."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def by_modelopt(python: Path, method: str, only: bool = False) -> Maker:
    """In an environment of its own; where Q/DQ goes is its choice but for `only`. Seconds without importing it."""

    def make(given: Source, out: Path) -> float:
        feeds = out.with_suffix(".npz")
        write_feeds(feeds, given.feeds)
        script = Path(__file__).with_name("with_modelopt.py")
        command = [python, script, given.path, feeds, method, out, "--exclude", *given.kept]
        if only:
            command += ["--only", *(layer.name for layer in given.layers)]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        feeds.unlink()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise RuntimeError(f"{python} {script.name} {given.path.name} {method}: {last}")
        return float(json.loads(done.stdout.splitlines()[-1])["seconds"])

    return make


def modelopt_version(python: Path | None) -> str:
    """Empty without an environment."""
    if python is None:
        return ""
    code = "import importlib.metadata as m; print(m.version('nvidia-modelopt'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()

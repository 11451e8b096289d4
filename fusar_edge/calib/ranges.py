"""Ranges of activations, measured on the FP32 ONNX graph while it runs on real inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import DataError
from fusar_edge.specs import RangeSpec

BINS = 4096
LEVELS = 127
Feeds = dict[str, npt.NDArray[Any]]


class AbsoluteHistogram:
    """|x| of a stream of arrays in `BINS` equal bins from 0; the range doubles as needed, the memory is constant.

    Doubling adds neighbouring bins, so no value is counted twice and none is lost; a percentile is right to one bin,
    which is at most 1/2048 of the range that the data needed.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.top = 0.0
        """Upper edge of the last bin; 0 until a value other than 0 was seen."""
        self.largest = 0.0

    def add(self, values: npt.NDArray[np.floating[Any]]) -> None:
        """Count an array of any shape. Raises ValueError where it holds a NaN or an infinity."""
        absolute = np.abs(values).ravel()
        if absolute.size == 0:
            return
        largest = float(absolute.max())
        if not np.isfinite(largest):
            raise ValueError("not a finite number")
        self.largest = max(self.largest, largest)
        if largest and not self.top:
            self.top = largest
        while largest > self.top:
            self.top *= 2
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(1)
            self.counts[BINS // 2 :] = 0
        if not self.top:
            self.counts[0] += absolute.size
            return
        # In float64: BINS / top is no float32 for a range below 1e-35, and no float16 for one below 0.07.
        bins = np.multiply(absolute, BINS / self.top, dtype=np.float64)
        place = np.minimum(bins.astype(np.int64), BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)

    def range(self, spec: RangeSpec) -> float:
        """The |x| that becomes 127: the largest seen, or the upper edge of the bin that the method chooses."""
        if spec.method == "max" or not self.top:
            return self.largest
        if spec.method in CLIPPED:
            return min(CLIPPED[spec.method](self.counts) * self.top / BINS, self.largest)
        rank = spec.percentile / 100 * int(self.counts.sum())
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min((min(place, BINS - 1) + 1) * self.top / BINS, self.largest)


def least_squares(counts: npt.NDArray[np.int64]) -> int:
    """Bins below the clipping point for which the squared error of INT8 is least, each bin at its middle."""
    middles, filled = np.arange(len(counts)) + 0.5, counts > 0
    x, weight = middles[filled].astype(np.float64), counts[filled].astype(np.float64)
    edges = np.arange(1, len(counts) + 1, max(1, len(counts) // SEARCHED))
    errors = [_squared_error(x, weight, float(edge)) for edge in edges]
    best = int(edges[int(np.argmin(errors))])
    near = range(max(1, best - SEARCHED // 8), min(len(counts), best + SEARCHED // 8) + 1)
    return min(near, key=lambda edge: _squared_error(x, weight, edge))


def _squared_error(x: npt.NDArray[np.float64], weight: npt.NDArray[np.float64], edge: float) -> float:
    step = edge / LEVELS
    error = np.minimum(np.rint(x / step), LEVELS) * step - x
    # A bin is as wide as 1: what lies in it is spread around its middle, which no rounding of the middle shows.
    return float(weight @ (error * error))


def least_divergence(counts: npt.NDArray[np.int64]) -> int:
    """Bins below the clipping point for which the distribution of the 128 levels is nearest to that of the values.

    Migacz, "8-bit inference with TensorRT", GTC 2017: what is clipped counts into the last bin of the reference, the
    levels spread their counts over the bins that are not empty, and the Kullback-Leibler divergence decides. The bin of
    zeros is left out, as TensorRT does: a rectifier's zeros are exact in any range and would drown the rest.
    """
    held = counts.astype(np.float64)
    held[0] = 0
    if not held.any():
        return 1
    edges = range(LEVELS + 1, len(counts) + 1, max(1, len(counts) // SEARCHED))
    return min(edges, key=lambda edge: _divergence(held, edge))


def _divergence(counts: npt.NDArray[np.float64], edge: int) -> float:
    reference = counts[:edge].copy()
    filled = reference > 0
    level = np.minimum(np.arange(edge) * (LEVELS + 1) // edge, LEVELS)
    inside = np.bincount(level, weights=reference, minlength=LEVELS + 1)
    bins = np.bincount(level, weights=filled, minlength=LEVELS + 1)
    spread = np.where(filled, inside[level] / np.maximum(bins[level], 1), 0.0)
    reference[-1] += counts[edge:].sum()
    if not spread.any():
        return float("inf")
    p, q = reference / reference.sum(), spread / spread.sum()
    if (q[p > 0] == 0).any():  # the clipped mass fell on an empty bin: as far as it can be
        q = q + EMPTY
        q /= q.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


SEARCHED = 512
"""Clipping points that are tried."""
EMPTY = 1e-4
CLIPPED: dict[str, Callable[[npt.NDArray[np.int64]], int]] = {"mse": least_squares, "entropy": least_divergence}


def session_with_outputs(onnx_path: Path, tensors: Iterable[str], threads: int = 2) -> Any:
    """An ONNX Runtime session whose only outputs are the named inner tensors of the graph."""
    import onnx
    import onnxruntime

    model = onnx.load(onnx_path, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(onnx_path.parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def collect_ranges(
    onnx_path: Path,
    tensors: Iterable[str],
    feeds: Iterable[Feeds],
    spec: RangeSpec,
    without: Mapping[str, npt.NDArray[np.int64]] | None = None,
) -> dict[str, float]:
    """Tensor name -> |x| that becomes 127, over all `feeds` (graph input -> array, one dict per run of the graph).

    A range of 0 means that the tensor was 0 on every input. `without`: tensor name -> channels (last axis) that do not
    count. Raises DataError where a tensor is not finite.
    """
    names = sorted(set(tensors))
    histograms = {name: AbsoluteHistogram() for name in names}
    for name, value in _values(onnx_path, names, feeds):
        channels = (without or {}).get(name)
        try:
            histograms[name].add(value if channels is None else np.delete(value, channels, axis=-1))
        except ValueError as problem:
            raise DataError(f"{onnx_path}: {name} is {problem} on a calibration input; check the export") from None
    return {name: histogram.range(spec) for name, histogram in histograms.items()}


def channel_maxima(
    onnx_path: Path, tensors: Iterable[str], feeds: Iterable[Feeds]
) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """Tensor name -> largest |x| of each channel (last axis), over all `feeds`."""
    found: dict[str, npt.NDArray[np.floating[Any]]] = {}
    for name, value in _values(onnx_path, sorted(set(tensors)), feeds):
        largest = np.abs(value).reshape(-1, value.shape[-1]).max(0)
        found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


def _values(onnx_path: Path, names: list[str], feeds: Iterable[Feeds]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Each of the named tensors on each feed. Inputs of the graph may be named too; feeds for inputs that the named
    tensors do not need are ignored."""
    given = _input_names(onnx_path)
    inner = [name for name in names if name not in given]
    session = session_with_outputs(onnx_path, inner) if inner else None
    for feed in feeds:
        values = dict(feed)
        if session:
            values |= zip(inner, session.run(None, feed), strict=True)
        yield from ((name, values[name]) for name in names)


def _input_names(onnx_path: Path) -> set[str]:
    import onnx

    return {value.name for value in onnx.load(onnx_path, load_external_data=False).graph.input}

"""Ranges of activations, measured on the FP32 ONNX graph while it runs on real inputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import DataError
from fusar_edge.specs import RangeSpec

BINS = 4096
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
        place = np.minimum((absolute * (BINS / self.top)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)

    def range(self, spec: RangeSpec) -> float:
        """The |x| that becomes 127: the largest seen, or the upper edge of the bin that holds the percentile."""
        if spec.method == "max" or not self.top:
            return self.largest
        rank = spec.percentile / 100 * int(self.counts.sum())
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min((min(place, BINS - 1) + 1) * self.top / BINS, self.largest)


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
    onnx_path: Path, tensors: Iterable[str], feeds: Iterable[Feeds], spec: RangeSpec
) -> dict[str, float]:
    """Tensor name -> |x| that becomes 127, over all `feeds` (graph input -> array, one dict per run of the graph).

    A range of 0 means that the tensor was 0 on every input. Inputs of the graph may be named too; feeds for inputs that
    the named tensors do not need are ignored. Raises DataError where a tensor is not finite.
    """
    names = sorted(set(tensors))
    given = _input_names(onnx_path)
    inner = [name for name in names if name not in given]
    session = session_with_outputs(onnx_path, inner) if inner else None
    histograms = {name: AbsoluteHistogram() for name in names}
    for feed in feeds:
        values = dict(feed)
        if session:
            values |= zip(inner, session.run(None, feed), strict=True)
        for name, histogram in histograms.items():
            try:
                histogram.add(values[name])
            except ValueError as problem:
                raise DataError(f"{onnx_path}: {name} is {problem} on a calibration input; check the export") from None
    return {name: histogram.range(spec) for name, histogram in histograms.items()}


def _input_names(onnx_path: Path) -> set[str]:
    import onnx

    return {value.name for value in onnx.load(onnx_path, load_external_data=False).graph.input}

"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import BundleError
from fusar_edge.runtime.adapters import read_tensors
from fusar_edge.runtime.backend import Cache, Floats, Int32, Step
from fusar_edge.runtime.bundle import DECODER, VISION, Bundle
from fusar_edge.runtime.cache import KvCache
from fusar_edge.runtime.contract import Tensors, graph_contract

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


SMALL_BYTES = 64 << 20
"""A decoder up to this size runs on one thread: its step is too short to be shared. fusar-tiny on 2 quiet cores: 0.22
ms a token on one thread, 0.27 on two; beside one busy process 0.22 and 0.35. Two that spin: 0.19, and 0.52."""


class OrtBackend:
    """Backend over two inference sessions. The cache's rows are bound as `past` and `new`: no copy is made."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self.settings = bundle.settings
        self._vision = _open_session(bundle, VISION, threads)
        self._adapter = _adapter(bundle)
        self._decoder = _open_session(bundle, DECODER, 1 if _is_small(bundle) else threads, self._adapter)
        self._dtypes = {i.name: _DTYPES[i.type] for s in (self._vision, self._decoder) for i in s.get_inputs()}
        self._binding = self._decoder.io_binding()
        self._logits = np.empty((1, self.settings.vocab_size), _DTYPES[self._decoder.get_outputs()[0].type])
        self._next_ids = np.empty(1, np.int32)

    def vision(self, pixels: Floats, anchors: Floats, positions: Floats, mask: Floats) -> Floats:
        feed = {"pixels": pixels, "anchors": anchors, "anchor_positions": positions, "anchor_mask": mask}
        feed = {name: np.ascontiguousarray(value, self._dtypes[name]) for name, value in feed.items()}
        tokens: Floats = self._vision.run(["visual_tokens"], feed)[0]
        return tokens

    def new_cache(self, capacity: int) -> Cache:
        s = self.settings
        return KvCache(capacity, (s.layers, 2, 1, s.kv_heads, s.head_dim), self._dtypes["past"])

    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        assert isinstance(cache, KvCache), "a cache of another backend"
        tokens = input_ids.shape[1]
        feed: dict[str, npt.NDArray[Any]] = {
            "input_ids": input_ids,
            "visual_tokens": visual_tokens,
            "visual_index": visual_index,
            "position_ids": position_ids,
        }
        feed = {name: np.ascontiguousarray(value, self._dtypes[name]) for name, value in feed.items()}
        feed["past"] = cache.past()
        for name, value in feed.items():
            self._bind(self._binding.bind_input, name, value)
        for name, value in (("logits", self._logits), ("next_ids", self._next_ids), ("new", cache.next_rows(tokens))):
            self._bind(self._binding.bind_output, name, value)
        self._decoder.run_with_iobinding(self._binding)
        cache.advance(tokens)
        return Step(self._logits, self._next_ids.copy())

    @staticmethod
    def _bind(bind: Any, name: str, value: npt.NDArray[Any]) -> None:
        bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)


def open_ort(bundle: Bundle, threads: int = 0) -> OrtBackend:
    if bundle.settings.fused is None:
        return OrtBackend(bundle, threads)
    from fusar_edge.runtime.ort_fused import FusedOrtBackend

    return FusedOrtBackend(bundle, threads)


def _adapter(bundle: Bundle) -> dict[str, Any]:
    """Constants of the decoder that are the active adapter's; the graph itself refers to the one it was exported with.

    A session reads them in place: they are to be kept as long as it is.
    """
    if bundle.settings.adapters is None:
        return {}
    import onnxruntime

    tensors = read_tensors(bundle.folder, bundle.settings.adapters.active)
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()}


def _open_session(bundle: Bundle, name: str, threads: int, given: Mapping[str, Any] = {}) -> Any:
    """`given`: constants that take the place of those in the graph's files."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _processors()
    options.inter_op_num_threads = 1
    # Measured on 2 cores that other work shares, fusar-tiny, 2 threads: a decode step takes 18.8 ms with spinning, 2.2
    # without (median); two sessions' threads spin against each other too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Shapes of the decoder change with every token: one memory pattern would be kept for each length.
    options.enable_mem_pattern = name == VISION
    options.log_severity_level = 3
    path = bundle.file(name)
    if given:
        options.add_external_initializers(list(given), list(given.values()))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime's own classes derive from Exception alone
        reason = str(problem).splitlines()[0]
        raise BundleError(f"{path}: ONNX Runtime cannot open it ({reason}); build it again") from None
    _check_contract(path, session, *graph_contract(bundle.settings)[name])
    return session


def _is_small(bundle: Bundle) -> bool:
    return sum(path.stat().st_size for path in bundle.folder.glob(f"{DECODER}*")) <= SMALL_BYTES


def _processors() -> int:
    """Those this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_contract(path: Path, session: Any, inputs: Tensors, outputs: Tensors) -> None:
    for kind, wanted, found in (("input", inputs, session.get_inputs()), ("output", outputs, session.get_outputs())):
        shapes = {value.name: value.shape for value in found}
        if set(shapes) != set(wanted):
            raise BundleError(f"{path}: its {kind}s are {', '.join(shapes)}; they must be {', '.join(wanted)}")
        for name, shape in wanted.items():
            same = len(shape) == len(shapes[name]) and all(
                a is None or not isinstance(b, int) or a == b for a, b in zip(shape, shapes[name], strict=True)
            )
            if not same:
                raise BundleError(f"{path}: {kind} {name} is {shapes[name]}; the bundle's settings say {list(shape)}")
        for value in found:
            if value.type not in _DTYPES:
                raise BundleError(f"{path}: {kind} {value.name} has type {value.type}; allowed: {', '.join(_DTYPES)}")

"""ONNX Runtime on the CPU, with a decoder that was fused for it (fusar_edge.engines.fused)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.runtime.backend import Cache, Floats, Int32, Step
from fusar_edge.runtime.bundle import Bundle, BundleSettings
from fusar_edge.runtime.cache import Rows
from fusar_edge.runtime.ort import OrtBackend


class FusedCache(Rows):
    """Keys and values by layer, and the rotary tables, all with a row for each token; bound once.

    Rows from `length` on are never read.
    """

    def __init__(self, capacity: int, settings: BundleSettings, binding: Any) -> None:
        super().__init__(capacity)
        s = settings
        self.binding = binding
        self.buffer = np.empty((s.layers, 2, 1, s.kv_heads, capacity, s.head_dim), np.float32)
        self.cos, self.sin = np.empty((2, capacity, s.head_dim // 2), np.float32)
        self.rows_in_use, self.last_row = np.empty((), np.int32), np.empty(1, np.int32)
        self.one = {"input_ids": np.empty((1, 1), np.int32), "visual_index": np.empty((1, 1), np.int32)}
        """What a step of one token reads; written in place, so that nothing is bound anew."""
        self._given: dict[str, npt.NDArray[Any]] = {}
        for name in ("cos", "sin", "rows_in_use", "last_row"):
            self.bind(name, getattr(self, name))
        for layer in range(s.layers):
            for kind, rows in zip(("keys", "values"), self.buffer[layer], strict=True):
                bound(binding.bind_input, f"{kind}.{layer}", rows)
                bound(binding.bind_output, f"new_{kind}.{layer}", rows)

    def bind(self, name: str, value: npt.NDArray[Any]) -> None:
        """Have the next steps read `value`, which is kept until another takes its place."""
        if self._given.get(name) is not value:
            self._given[name] = value
            bound(self.binding.bind_input, name, value)


class FusedOrtBackend(OrtBackend):
    """Backend whose attention extends the cache in place."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        super().__init__(bundle, threads)
        facts = self.settings.fused
        assert facts is not None, "not a fused bundle"
        self._axes = np.repeat(np.arange(3), facts.sections)
        self._frequencies = np.array(facts.frequencies, np.float32)

    def new_cache(self, capacity: int) -> FusedCache:
        cache = FusedCache(capacity, self.settings, self._decoder.io_binding())
        bound(cache.binding.bind_output, "logits", self._logits)
        bound(cache.binding.bind_output, "next_ids", self._next_ids)
        return cache

    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        assert isinstance(cache, FusedCache), "a cache of another backend"
        tokens = input_ids.shape[1]
        cache.check_room(tokens)
        end = cache.length + tokens
        new = slice(cache.length, end)
        angle = np.multiply(position_ids[self._axes, 0].T, self._frequencies, dtype=np.float32)  # (N, D / 2)
        np.cos(angle, out=cache.cos[new])
        np.sin(angle, out=cache.sin[new])
        cache.rows_in_use[...], cache.last_row[0] = end, end - 1
        feed = {"input_ids": input_ids, "visual_index": visual_index}
        for name, value in feed.items():
            if tokens == 1:
                cache.one[name][...] = value
                cache.bind(name, cache.one[name])
            else:
                cache.bind(name, np.ascontiguousarray(value, self._dtypes[name]))
        cache.bind("visual_tokens", np.ascontiguousarray(visual_tokens, self._dtypes["visual_tokens"]))
        self._decoder.run_with_iobinding(cache.binding)
        cache.length = end
        return Step(self._logits, self._next_ids.copy())


def bound(bind: Any, name: str, value: npt.NDArray[Any]) -> None:
    bind(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

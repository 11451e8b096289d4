"""What runs the two graphs. One Protocol, one lazy table of implementations."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import BundleError
from fusar_edge.runtime.bundle import Bundle

Floats = npt.NDArray[np.floating]
Int32 = npt.NDArray[np.int32]


class Cache(Protocol):
    """Keys and values of the tokens so far; where they live is the backend's business."""

    length: int

    @property
    def room(self) -> int: ...

    def truncate(self, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """Outcome of one run of the decoder."""

    logits: Floats
    """[B, V] of the last position. Valid until the next step."""
    next_ids: Int32
    """[B] most probable next token."""


class Backend(Protocol):
    """Both graphs of one bundle. Not shared between threads."""

    def vision(self, pixels: Floats, anchors: Floats, positions: Floats, mask: Floats) -> Floats:
        """pixels [B, 1, S, S] grey 0..1, anchors [B, A, bands], positions [B, A, 2] (y, x), mask [B, A] -> [B, T, C].

        `bands`: 64, or the number of coefficients that a bundle for baked tables takes.
        """
        ...

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens of a batch of one."""
        ...

    def step(
        self, cache: Cache, input_ids: Int32, visual_tokens: Floats, visual_index: Int32, position_ids: Int32
    ) -> Step:
        """Run N tokens after those in `cache` and append them to it.

        input_ids [B, N], visual_tokens [B, T, C], visual_index [B, N] (-1 = text), position_ids [3, B, N].
        InputError, with the cache unchanged, where N tokens do not fit.
        """
        ...


ENGINES = {
    "onnxruntime": "fusar_edge.runtime.ort:open_ort",
    "tensorrt": "fusar_edge.runtime.trt:open_trt",
}
"""Engine -> module:function(bundle, threads) -> Backend, imported on use."""


def open_backend(bundle: Bundle, threads: int = 0) -> Backend:
    """The backend that `bundle.settings.engine` names. `threads` 0: all processors this process may use."""
    engine = bundle.settings.engine
    if engine not in ENGINES:
        raise BundleError(
            f"{bundle.folder}: engine {engine!r} is unknown to this fusar-edge; it runs: {', '.join(ENGINES)}"
        )
    module, function = ENGINES[engine].split(":")
    backend: Backend = getattr(importlib.import_module(module), function)(bundle, threads)
    return backend

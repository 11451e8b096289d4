"""What is measured of a backend, whichever engine runs it: outputs against a reference, and latencies. NumPy only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.runtime.backend import Backend
from fusar_edge.runtime.bundle import BundleSettings
from fusar_edge.runtime.generate import Prefix

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
BEFORE, AFTER, QUESTION, STEPS = 14, 6, 26, 16
"""Tokens of a case: template before and after the image, question, forced answer."""


class Case:
    """One image with anchors, a prompt and an answer that is forced token by token, all from a seed."""

    def __init__(self, settings: BundleSettings, seed: int = 0) -> None:
        """Only ids of plain text are drawn, the lower half of the vocabulary."""
        generator = np.random.default_rng(seed)
        s, nodes = settings, settings.anchor_nodes
        self.pixels = generator.random((1, 1, s.image_size, s.image_size), np.float32)
        vectors = generator.normal(size=(1, nodes**2, s.anchors.bands)).astype(np.float32)
        self.anchors = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
        grid = (np.stack(np.divmod(np.arange(nodes**2), nodes), 1) + 0.5) / nodes
        self.positions, self.mask = grid[None].astype(np.float32), np.ones((1, nodes**2), np.float32)

        def words(count: int) -> list[int]:
            return [int(i) for i in generator.integers(0, s.vocab_size // 2, count)]

        self.prefix = Prefix(tuple(words(BEFORE)), s.cells, s.image_token_id, tuple(words(AFTER)))
        self.question, self.answer = words(QUESTION), words(STEPS)

    def see(self, backend: Backend) -> Array:
        return backend.vision(self.pixels, self.anchors, self.positions, self.mask)

    def prefill(self, backend: Backend, cache: Any, visual: Array) -> Array:
        """Image and question in one run, into an emptied cache; logits [V], copied."""
        cache.truncate(0)
        ids = np.array([[*self.prefix.ids, *self.question]], np.int32)
        index = np.full_like(ids, -1)
        index[0, : len(self.prefix)] = self.prefix.visual_index
        positions = self.prefix.positions(ids.shape[1])
        return backend.step(cache, ids, visual, index, positions[:, None]).logits[0].copy()

    def follow(self, backend: Backend, cache: Any, visual: Array, token: int) -> Array:
        """One decode step; logits [V], valid until the next."""
        at = cache.length
        position = self.prefix.positions(at + 1)[:, None, at:]
        text = np.full((1, 1), -1, np.int32)
        return backend.step(cache, np.array([[token]], np.int32), visual, text, position).logits[0]


def outputs(backend: Backend, settings: BundleSettings, case: Case, visual: Array | None = None) -> Outputs:
    """visual_tokens [T, C], prefill logits [V], decode logits [STEPS, V]; the decoder on `visual` where given.

    `visual`: the reference's visual tokens, so that the decoder is compared on equal inputs.
    """
    seen = case.see(backend)
    given = seen if visual is None else visual[None]
    cache = backend.new_cache(settings.context_tokens)
    first = case.prefill(backend, cache, given)
    steps = [case.follow(backend, cache, given, token).copy() for token in case.answer]
    return {"visual_tokens": seen[0].copy(), "prefill": first, "decode": np.stack(steps)}


def compared(found: Outputs, reference: Outputs) -> dict[str, dict[str, float]]:
    """Output -> cosine, norm ratio, largest difference, and for logits the share of equal greedy tokens."""
    figures = {}
    for name, wanted in reference.items():
        a, b = found[name].astype(np.float64), wanted.astype(np.float64)
        norms = np.linalg.norm(a), np.linalg.norm(b)
        figures[name] = {
            "cosine": float(a.ravel() @ b.ravel() / (norms[0] * norms[1])),
            "norm_ratio": float(norms[0] / norms[1]),
            "largest_difference": float(np.abs(a - b).max()),
        }
        if name != "visual_tokens":
            figures[name]["same_token"] = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    return figures


def timed(call: Callable[[], object], seconds: float, warmup: int = 5, most: int = 1000) -> list[float]:
    """Milliseconds of each call after the warm-up; at least 5 of them, until `seconds` are over or there are `most`."""
    for _ in range(warmup):
        call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < most and (len(taken) < 5 or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """p50, p90, p99 and mean of milliseconds, and how many there are."""
    p50, p90, p99 = np.percentile(taken, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(np.mean(taken)), "n": len(taken)}


def latencies(backend: Backend, settings: BundleSettings, case: Case, seconds: float) -> dict[str, Any]:
    """Observations, in ms, of vision, prefill and decode step (host clock, each with its one wait for the device).

    `device`: allocations and waits of the decode steps, where the backend has a device that counts them.
    """
    cache = backend.new_cache(settings.context_tokens)
    length = len(case.prefix) + QUESTION

    def decode() -> None:
        if cache.room == 0 or cache.length >= length + 64:
            cache.truncate(length)
        case.follow(backend, cache, visual, case.answer[cache.length % STEPS])

    found: dict[str, Any] = {"vision": timed(lambda: case.see(backend), seconds)}
    visual = case.see(backend)  # those of the last call alone are on the device still
    found["prefill"] = timed(lambda: case.prefill(backend, cache, visual), seconds)
    before = _counted(backend)
    found["decode"] = timed(decode, seconds)
    if before is not None:
        steps = len(found["decode"]) + 5
        after = _counted(backend)
        assert after is not None
        found["device"] = {
            "allocations_in_decode": after[0] - before[0],
            "waits_per_step": (after[1] - before[1]) / steps,
        }
    return found | {"prefill_tokens": length, "cached_tokens": length + 32}


def _counted(backend: Backend) -> tuple[int, int] | None:
    device = getattr(backend, "_device", None)
    return None if device is None else (device.allocations, device.synchronisations)

"""INT8 against FP32 on inputs that gave no range: visual tokens, logits, tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.samples import SampleReader, vision_tokens
from fusar_edge.data.triplets import Triplet
from fusar_edge.runtime.backend import Backend

Array = npt.NDArray[np.floating[Any]]


def cosine(a: Array, b: Array) -> float:
    """Of two arrays as flat vectors, in float64; 0 where one is all zeros."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y / norms) if norms else 0.0


def norm_ratio(a: Array, b: Array) -> float:
    """|a| / |b|."""
    return float(np.linalg.norm(a.astype(np.float64)) / np.linalg.norm(b.astype(np.float64)))


def compared(int8: Backend, fp32: Backend, reader: SampleReader, samples: list[Triplet]) -> dict[str, float]:
    """Figures of the INT8 pair of graphs against FP32.

    vision_*: visual tokens of each image, with anchors (where it has any) and without. logits_*, token_agreement: the
    whole chain, each pair on its own visual tokens and cache, at every token of the reference answer.
    """
    vision, logits, same = [], [], []
    for sample in samples:
        for feed in reader.vision_feeds(sample):
            visual = [vision_tokens(backend, feed) for backend in (int8, fp32)]
            vision.append((cosine(*visual), norm_ratio(*visual)))
        for a, b in zip(
            *(_logits(k, v, reader, sample) for k, v in zip((int8, fp32), visual, strict=True)), strict=True
        ):
            logits.append((cosine(a, b), norm_ratio(a, b)))
            same.append(int(a.argmax()) == int(b.argmax()))
    return {
        "vision_cosine": float(np.mean([c for c, _ in vision])),
        "vision_cosine_least": min(c for c, _ in vision),
        "vision_norm_ratio": float(np.mean([r for _, r in vision])),
        "logits_cosine": float(np.mean([c for c, _ in logits])),
        "logits_cosine_least": min(c for c, _ in logits),
        "logits_norm_ratio": float(np.mean([r for _, r in logits])),
        "token_agreement": float(np.mean(same)),
        "images": len(samples),
        "tokens": len(same),
    }


def _logits(backend: Backend, visual: Array, reader: SampleReader, sample: Triplet) -> list[Array]:
    cache = backend.new_cache(reader.settings.context_tokens)
    steps = reader.steps(sample, single=reader.settings.context_tokens)
    return [backend.step(cache, s.input_ids, visual, s.visual_index, s.position_ids).logits.copy() for s in steps]

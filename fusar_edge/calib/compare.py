"""INT8 against FP32 on inputs that gave no range: visual tokens, logits, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.calib.tiles.samples import Feeds, SampleReader, vision_tokens
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


def divergence(reference: Array, measured: Array) -> float:
    """Kullback-Leibler divergence of softmax(measured) from softmax(reference), nats, in float64; logits [.., V]."""
    p, q = _log_softmax(reference), _log_softmax(measured)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@dataclass(frozen=True)
class _Seen:
    """What FP32 makes of one sample."""

    feeds: list[Feeds]
    """The image with its anchors, where it has any, and without."""
    visual: list[Array]
    """Visual tokens of each feed."""
    logits: list[Array]
    """At every token of the reference answer, on the last feed's visual tokens."""


class Reference:
    """FP32 on a few samples, run once; what INT8 says of them is compared with it."""

    def __init__(self, fp32: Backend, reader: SampleReader, samples: Sequence[Triplet]) -> None:
        self.reader, self.samples = reader, list(samples)
        self._seen = [self._run(fp32, sample) for sample in samples]

    def _run(self, backend: Backend, sample: Triplet) -> _Seen:
        feeds = self.reader.vision_feeds(sample)
        visual = [vision_tokens(backend, feed).copy() for feed in feeds]
        return _Seen(feeds, visual, _logits(backend, visual[-1], self.reader, sample))

    def compared(self, int8: Backend) -> dict[str, float]:
        """Figures of INT8 against FP32.

        vision_*: visual tokens of each image, with anchors (where it has any) and without. logits_*, token_agreement:
        the whole chain, each pair of graphs on its own visual tokens and cache, at every token of the reference answer.
        *_norm_off: mean distance of the ratio of norms from 1.
        """
        vision, logits, same, apart = [], [], [], []
        for sample, seen in zip(self.samples, self._seen, strict=True):
            for feed, reference in zip(seen.feeds, seen.visual, strict=True):
                visual = vision_tokens(int8, feed)
                vision.append((cosine(visual, reference), norm_ratio(visual, reference)))
            for a, b in zip(_logits(int8, visual, self.reader, sample), seen.logits, strict=True):
                logits.append((cosine(a, b), norm_ratio(a, b)))
                apart.append(divergence(b, a))
                same.append(int(a.argmax()) == int(b.argmax()))
        return {
            "vision_cosine": float(np.mean([c for c, _ in vision])),
            "vision_cosine_least": min(c for c, _ in vision),
            "vision_norm_ratio": float(np.mean([r for _, r in vision])),
            "vision_norm_off": float(np.mean([abs(r - 1) for _, r in vision])),
            "logits_cosine": float(np.mean([c for c, _ in logits])),
            "logits_cosine_least": min(c for c, _ in logits),
            "logits_norm_ratio": float(np.mean([r for _, r in logits])),
            "logits_norm_off": float(np.mean([abs(r - 1) for _, r in logits])),
            "logits_kl": float(np.mean(apart)),
            "token_agreement": float(np.mean(same)),
            "images": len(self.samples),
            "tokens": len(same),
        }


def _logits(backend: Backend, visual: Array, reader: SampleReader, sample: Triplet) -> list[Array]:
    cache = backend.new_cache(reader.settings.context_tokens)
    steps = reader.steps(sample, single=reader.settings.context_tokens)
    return [backend.step(cache, s.input_ids, visual, s.visual_index, s.position_ids).logits.copy() for s in steps]

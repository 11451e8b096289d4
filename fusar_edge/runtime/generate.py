"""Greedy generation on a prefix that all questions about one image share."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError
from fusar_edge.runtime.backend import Backend, Cache, Floats
from fusar_edge.runtime.grammar import Writing
from fusar_edge.runtime.positions import mrope_positions

StopReason = Literal["eos", "max_new_tokens", "context_full"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Text before the image, the image, text after it: the part of a prompt that does not depend on the question."""

    before: tuple[int, ...]
    cells: int
    """Visual tokens per side."""
    image_token_id: int
    after: tuple[int, ...]

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """[length]."""
        return np.array([*self.before, *[self.image_token_id] * self.cells**2, *self.after], np.int32)

    @property
    def visual_index(self) -> npt.NDArray[np.int32]:
        """[length]; -1 for text."""
        index = np.full(len(self), -1, np.int32)
        index[len(self.before) : len(self.before) + self.cells**2] = np.arange(self.cells**2)
        return index

    def positions(self, length: int) -> npt.NDArray[np.int32]:
        """mRoPE positions [3, length] of the prefix and what follows it."""
        head, image = len(self.before), self.cells**2
        return mrope_positions(head, self.cells, length - head - image).astype(np.int32)

    def __len__(self) -> int:
        return len(self.before) + self.cells**2 + len(self.after)


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer as tokens."""

    ids: tuple[int, ...]
    """Without the end-of-answer token."""
    log_probabilities: tuple[float, ...]
    """Natural logarithm of the probability that the model gave each token it chose, the end-of-answer token included.
    Under a grammar too it is that among all tokens; tokens that the grammar forced were not chosen."""
    stop_reason: StopReason
    prefill_ms: float
    decode_ms: float
    decode_tokens: int
    """What `decode_ms` brought: tokens after those that the prefill brought, the end-of-answer token included."""

    @property
    def confidence(self) -> float:
        """Geometric mean of the tokens' probabilities, 0..1; 0 for no token."""
        return float(np.exp(np.mean(self.log_probabilities))) if self.log_probabilities else 0.0


def run_prefix(backend: Backend, cache: Cache, prefix: Prefix, visual_tokens: Floats) -> None:
    """Empty the cache and fill it with the prefix of an image; visual_tokens [1, cells^2, C]."""
    cache.truncate(0)
    positions = prefix.positions(len(prefix))
    backend.step(cache, prefix.ids[None], visual_tokens, prefix.visual_index[None], positions[:, None])


def generate(
    backend: Backend,
    cache: Cache,
    prefix: Prefix,
    visual_tokens: Floats,
    question_ids: Sequence[int],
    max_new_tokens: int,
    eos_ids: Collection[int],
    on_token: Callable[[int], None] | None = None,
    writing: Writing | None = None,
) -> Generation:
    """Answer one question after `run_prefix`; on return the cache holds the prefix alone again.

    `question_ids` is the question and the template's piece after it. InputError where it leaves no room to answer.
    `on_token` is told each token of the answer as it is known; what it raises ends the answer and goes to the caller.
    `writing`: the grammar that the answer keeps to. What it forces goes through the decoder together with the choice
    before it, or not at all at the end.
    """
    start = len(prefix)
    if len(question_ids) >= cache.room:
        raise InputError(
            f"a question of {len(question_ids)} tokens leaves no room to answer: {cache.room} are left after the "
            "image; ask a shorter question, or build the bundle with more context_tokens"
        )
    if max_new_tokens < 1 or not question_ids:
        raise InputError("generation needs a question and at least 1 new token")
    positions = prefix.positions(start + cache.room + 1)
    ids: list[int] = []
    log_probabilities: list[float] = []
    pending, times = list(question_ids), [time.perf_counter()]
    at_once, ended = 0, False
    """Tokens that the prefill brought; whether the model itself ended the answer."""

    def say(tokens: Sequence[int]) -> None:
        for token in tokens:
            ids.append(token)
            if on_token is not None:
                on_token(token)

    try:
        while True:
            if writing is not None:
                forced, left = writing.forced(), max_new_tokens - len(ids)
                say(forced[:left])
                pending += forced
                if writing.complete and len(forced) <= left:
                    reason: StopReason = "eos"
                    break
            if len(ids) == max_new_tokens:
                reason = "max_new_tokens"
                break
            if len(pending) > cache.room:
                reason = "context_full"
                break
            n, at = len(pending), cache.length
            inputs, text = np.array([pending], np.int32), np.full((1, n), -1, np.int32)
            step = backend.step(cache, inputs, visual_tokens, text, positions[:, None, at : at + n])
            times.append(time.perf_counter())
            at_once = at_once or len(ids) + 1
            token = int(step.next_ids[0]) if writing is None else writing.choose(step.logits[0])
            log_probabilities.append(_log_probability(step.logits[0], token))
            if token in eos_ids:
                reason, ended = "eos", True
                break
            say([token])
            pending = [token]
            if writing is not None:
                writing.take([token])
    finally:
        cache.truncate(start)
    first = times[min(len(times) - 1, 1)]
    return Generation(
        tuple(ids),
        tuple(log_probabilities),
        reason,
        prefill_ms=(first - times[0]) * 1e3,
        decode_ms=(times[-1] - first) * 1e3,
        decode_tokens=max(len(ids) + ended - at_once, 0) if at_once else 0,
    )


def _log_probability(logits: Floats, token: int) -> float:
    scores = logits.astype(np.float32)
    scores -= scores.max()
    return float(scores[token] - np.log(np.exp(scores).sum(dtype=np.float64)))

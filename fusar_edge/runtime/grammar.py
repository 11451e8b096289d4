"""Answers that keep to a grammar: what may come next, and what has to (llguidance)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusar_edge.data.grammars import box_bound, may_follow
from fusar_edge.errors import BundleError
from fusar_edge.runtime.backend import Floats

KEPT = 32
"""Compiled grammars: labels are part of them, and users give labels."""
NUMBER_TOKENS = 4096
"""More tokens than may begin, continue or end a number."""


class Grammars:
    """Grammars over one tokenizer. Not shared between threads."""

    def __init__(
        self, tokenizer: Path, vocab_size: int, eos_ids: Collection[int], decode: Callable[[int], str]
    ) -> None:
        """`decode`: text of one token. BundleError where llguidance cannot read the tokenizer."""
        import llguidance

        try:
            self._tokens = llguidance.LLTokenizer(str(tokenizer), n_vocab=vocab_size, eos_token=sorted(eos_ids))
        except Exception as problem:  # of Rust, no common class
            raise BundleError(
                f"{tokenizer}: no grammar can be laid over it ({problem}); build the bundle again"
            ) from None
        self._bits = np.zeros((1, -(-vocab_size // 32)), np.int32)
        self._decode = lru_cache(maxsize=NUMBER_TOKENS)(decode)
        self._matcher = lru_cache(maxsize=KEPT)(self._compiled)

    def begin(self, grammar: str, size: int) -> Writing:
        """An answer that is not begun. `size` bounds the coordinates of its boxes."""
        return Writing(self._matcher(grammar).deep_copy(), self._bits, self._decode, size)

    def _compiled(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_lark(grammar))
        if matcher.is_error():
            raise AssertionError(f"grammar of fusar_edge.data.grammars: {matcher.get_error()}\n{grammar}")
        return matcher


class Writing:
    """One answer while it is written."""

    def __init__(self, matcher: Any, bits: npt.NDArray[np.int32], decode: Callable[[int], str], size: int) -> None:
        self._matcher, self._bits, self._decode, self._size = matcher, bits, decode, size
        self._text = ""

    @property
    def complete(self) -> bool:
        """Nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def forced(self) -> list[int]:
        """Take what has to come next; [] where there is a choice, or the end."""
        ids = [int(token) for token in self._matcher.compute_ff_tokens()]
        if ids:
            self.take(ids)
        return ids

    def choose(self, logits: Floats) -> int:
        """The most probable token of [V] that may come next; one that ends the answer, where it may end."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        allowed = np.flatnonzero(np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: len(logits)])
        if (bound := box_bound(self._text)) is not None:
            digits, least = bound
            good = [may_follow(digits, self._decode(int(token)), least, self._size) for token in allowed]
            allowed = allowed[good]
        assert len(allowed), f"nothing may follow {self._text!r}"
        return int(allowed[logits[allowed].argmax()])

    def take(self, ids: Sequence[int]) -> None:
        """Go on after these tokens."""
        taken = self._matcher.consume_tokens(list(ids))
        assert taken, f"{self._matcher.get_error()} after {self._text!r}"
        self._text += "".join(self._decode(token) for token in ids)

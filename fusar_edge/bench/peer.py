"""What stands beside our runtime in a comparison: same weights, same tiles, same questions."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fusar_edge.errors import InputError
from fusar_edge.runtime.bundle import Bundle

if TYPE_CHECKING:
    from fusar_edge.runtime.session import Session

Floats = npt.NDArray[np.float32]
Question = tuple[str, str, int]
"""Task, text, most new tokens."""
OURS = "ours"
PEERS_MODULE = "fusar_edge.bench.peers"
"""Its table `PEERS`: name -> "module:maker", imported on use; a maker takes nothing and gives a `Peer`."""


@dataclass(frozen=True)
class PeerAnswer:
    """What one peer said about one tile, and how long it took."""

    ids: tuple[tuple[int, ...], ...]
    """Tokens of each answer, without the one that ends it."""
    texts: tuple[str, ...]
    ms: dict[str, float] = field(default_factory=dict)
    """Parts, as the peer can tell them apart: `tile` (all of it) always, `vision`, `prefill`, `decode` where known."""
    decode_tokens: int = 0
    """Tokens that `ms["decode"]` was spent on."""


class Peer(Protocol):
    """Answers the questions about one tile, greedily. Used by one thread."""

    name: str
    precision: str
    """Such as "int8", "fp32", "Q8_0"."""
    compared: str
    """What of it may be set beside ours: `tile` (all of a tile) or `decode` (time per token alone)."""

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        """Take the weights from the bundle; conversions are kept in `work`. MissingExtraError names what to install."""
        ...

    def answer(
        self, grey: Floats, anchors: Any | None, positions: Floats | None, questions: Sequence[Question]
    ) -> PeerAnswer:
        """grey [S, S] 0..1; anchors as fusar_edge.runtime.session.TileAnchors, or None; positions [A, 2] (y, x)."""
        ...

    def close(self) -> None: ...


class Ours:
    """The runtime itself: vision and prefix once for all questions. No grammars, so that tokens can be compared."""

    name = OURS
    precision = ""
    compared = "tile"
    grammar = False
    _session: Session | None = None

    def open(self, bundle: Bundle, threads: int, work: Path) -> None:
        from fusar_edge.runtime.session import Session

        self.precision = bundle.settings.precision
        self._session = Session(bundle, threads, grammar=self.grammar)

    def answer(
        self, grey: Floats, anchors: Any | None, positions: Floats | None, questions: Sequence[Question]
    ) -> PeerAnswer:
        session = self._session
        assert session is not None, "open comes first"
        start = time.perf_counter()
        looked = session.look(grey, anchors, positions)
        said = [session.ask(task, question=text).generation for task, text, _ in questions]
        texts = tuple(session.tokenizer.decode(list(one.ids)) for one in said)
        parts = {
            "tile": (time.perf_counter() - start) * 1e3,
            "vision": looked["vision_ms"],
            "prefix": looked["prefix_ms"],
            "prefill": sum(one.prefill_ms for one in said),
            "decode": sum(one.decode_ms for one in said),
        }
        decode_tokens = sum(one.decode_tokens for one in said)
        return PeerAnswer(tuple(one.ids for one in said), texts, parts, decode_tokens)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


class OursWithGrammar(Ours):
    """As a service runs it: answers keep to their task's grammar."""

    name = "ours-grammar"
    grammar = True


def peer_names() -> tuple[str, ...]:
    """Names that `--against` takes."""
    return tuple(importlib.import_module(PEERS_MODULE).PEERS)


def make_peer(name: str) -> Peer:
    """A peer by name, not opened yet. InputError for an unknown one."""
    if name == OURS:
        return Ours()
    table: dict[str, str] = importlib.import_module(PEERS_MODULE).PEERS
    if name not in table:
        raise InputError(f"--against {name}: allowed are {', '.join(table)}")
    module, maker = table[name].split(":")
    peer: Peer = getattr(importlib.import_module(module), maker)()
    return peer

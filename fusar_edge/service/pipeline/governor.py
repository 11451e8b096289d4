"""What may be done now: on board, power and temperature decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class WorkLimits:
    """Limits on the work of this moment; the defaults limit nothing."""

    tasks: tuple[str, ...] | None = None
    """Of a scene's tasks only these are asked; None: all. A tile of which none is left is left out."""
    stride: int = 1
    """Of the tiles not read yet, one in `stride` is asked about, spread as on a chessboard; the others are left out."""
    paused: bool = False
    """No tile is read or begun; those in work are finished."""
    reason: str = ""
    """For people: why."""


class Governor(Protocol):
    def limits(self) -> WorkLimits:
        """Asked before every tile, from several threads: cheap."""
        ...


class NoLimits:
    """Everything, at once."""

    def limits(self) -> WorkLimits:
        return WorkLimits()

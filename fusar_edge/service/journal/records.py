"""The nouns of the journal."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

Status = Literal["queued", "running", "done", "failed"]
Source = Literal["watch", "upload", "stac"]
MessageKind = Literal["tile", "scene", "failed"]

PRIORITIES = range(-100, 101)


@dataclass(frozen=True, kw_only=True)
class NewScene:
    """A file and what is asked about it."""

    path: Path
    """Where the service reads it."""
    name: str
    """For people; no folder."""
    sha256: str
    """Of the file, hex."""
    size_bytes: int
    mtime_ns: int
    source: Source
    owned: bool
    """The file at `path` is ours to delete."""
    tasks: tuple[str, ...]
    label: str
    bundle_sha256: str
    priority: int = 0
    """-100..100, higher first."""
    deadline: float | None = None
    """Unix seconds."""
    submitted_as: str = ""
    """Path or URL that it came from, for the operator."""
    acquired: str | None = None
    """ISO 8601 UTC, of a STAC item; counts where the file itself says no time."""

    @property
    def id(self) -> str:
        """16 hex digits; the same file asked the same question with the same bundle is the same scene."""
        question = [self.sha256, self.bundle_sha256, list(self.tasks), self.label]
        return hashlib.sha256(msgspec.json.encode(question)).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class SceneRow:
    """An accepted scene. Times are Unix seconds; the fields of NewScene mean the same here."""

    id: str
    path: Path
    name: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    source: Source
    owned: bool
    tasks: tuple[str, ...]
    label: str
    bundle_sha256: str
    priority: int
    deadline: float | None
    submitted_as: str
    acquired: str | None
    status: Status
    reason: str = ""
    """Why it failed."""
    attempts: int = 1
    """One more with each retry."""
    deaths: int = 0
    """How often in a row the service died with this scene in hand, and no tile of it was finished in between."""
    deaths_at: int = 0
    """`tiles_done` at the last of them."""
    accepted_at: float
    """No two scenes have the same."""
    started_at: float | None = None
    finished_at: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What `start` was given; {} before."""
    tiles_total: int = 0
    """0 before `start`."""
    tiles_done: int = 0
    """Answered or skipped."""


class TileOutcome(msgspec.Struct, frozen=True):
    """What became of one tile, JSON ready."""

    index: int
    status: Literal["answered", "skipped"]
    reason: str = ""
    """Of a skipped tile: nodata, triage or governor."""
    features: list[dict[str, Any]] = []
    """GeoJSON features of its answers."""
    detections: list[dict[str, Any]] = []
    """Fields of runtime.detections.Detection."""
    latency_ms: dict[str, float] = {}
    triage: dict[str, Any] = {}


@dataclass(frozen=True)
class Message:
    """What a sink is to be told. `key` never changes, so that a receiver knows a repetition."""

    key: str
    kind: MessageKind
    scene_id: str
    tile: int | None
    payload: bytes
    """JSON."""
    attempts: int = field(default=0, compare=False)
    """How often a sink refused this very message."""


@dataclass(frozen=True)
class Event:
    """Something that happened. Kinds: scene.accepted, scene.started, tile.done, scene.done, scene.failed,
    scene.retried, scene.refused."""

    id: int
    """Rises; never used twice."""
    at: float
    """Unix seconds."""
    scene_id: str
    """Empty: of no scene (scene.refused)."""
    kind: str
    data: dict[str, Any]

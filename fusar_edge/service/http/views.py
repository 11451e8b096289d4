"""What answers look like: scenes and tiles of the journal without what belongs to this machine alone."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from pydantic import BaseModel

from fusar_edge.service.http.problems import without_paths
from fusar_edge.service.journal import SceneRow, Status, TileOutcome


class Scene(BaseModel):
    """A scene that was accepted. All times are Unix seconds."""

    id: str
    name: str
    status: Status
    reason: str
    """Why it failed."""
    source: str
    """watch, upload or stac."""
    submitted_as: str
    """The URL or name that it came as."""
    sha256: str
    size_bytes: int
    bundle_sha256: str
    tasks: list[str]
    label: str
    priority: int
    deadline: float | None
    attempts: int
    accepted_at: float
    started_at: float | None
    finished_at: float | None
    tiles_total: int
    tiles_done: int
    facts: dict[str, Any]
    """Size, place, time and plan of tiles; empty until it is started."""


class Scenes(BaseModel):
    """Newest first."""

    scenes: list[Scene]
    next: float | None
    """Give it as `before` for those that are older; null: there are none."""


class Tile(BaseModel):
    """A finished tile."""

    index: int
    status: str
    reason: str
    features: list[dict[str, Any]]
    detections: list[dict[str, Any]]
    latency_ms: dict[str, float]
    triage: dict[str, Any]


class Tiles(BaseModel):
    """By index, which is not the order they were finished in."""

    tiles: list[Tile]
    next: int | None
    """Give it as `after` for those that follow; null: no more are finished."""


def scene_view(row: SceneRow) -> Scene:
    """Paths of this machine and what a URL may hide in its query are left out."""
    values = {name: getattr(row, name) for name in Scene.model_fields if name not in ("reason", "submitted_as")}
    return Scene(**values, reason=without_paths(row.reason), submitted_as=public_origin(row.submitted_as))


def tile_view(outcome: TileOutcome) -> Tile:
    return Tile(**msgspec.to_builtins(outcome))


def public_origin(text: str) -> str:
    """`https://user:secret@host/a.tif?signature=...` -> `https://host/a.tif`; of a path its last name."""
    if "://" not in text:
        return without_paths(text)
    try:
        parts = urlsplit(text)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        netloc = f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))

"""One look at the running service, for the page and for people."""

from __future__ import annotations

import dataclasses
import shutil
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fusar_edge import __version__
from fusar_edge.service.http.documented import problems
from fusar_edge.service.http.health import reasons_against
from fusar_edge.service.http.problems import without_paths

if TYPE_CHECKING:
    from fusar_edge.service.parts import ServiceParts
    from fusar_edge.service.pipeline import PipelineStatus


class SinkView(BaseModel):
    """Where results go."""

    name: str
    waiting: int
    """Messages that it has not taken yet."""
    dead: int
    """Messages that it has refused for good: GET /v1/dead-letters."""
    sent: int
    """Since the start."""
    failures: int
    """Batches in a row that it has not taken."""
    problem: str
    """Why the last one was not; empty when all is well."""


class WatchView(BaseModel):
    """The watch folder since the start."""

    accepted: int
    refused: int
    problem: str
    """Why it cannot be read, or what it waits for; empty when all is well."""


class StatusView(BaseModel):
    version: str
    profile: str
    at: float
    """Unix seconds of this answer."""
    uptime_s: float
    ready: bool
    reasons: list[str]
    """Why it is not ready."""
    bundle: dict[str, str]
    """name, sha256, precision, engine."""
    tasks: list[str]
    """What a scene may ask for."""
    default_tasks: list[str]
    label: str
    counts: dict[str, Any]
    """Of the journal: scenes by status, tiles, outbox by sink."""
    pipeline: dict[str, Any]
    """Tiles ready and in work, tiles per second over the last minute, seconds left, limits in force."""
    latency_ms: dict[str, dict[str, float]]
    """Stage -> count, p50, p95, p99, max over the last ten minutes."""
    sinks: list[SinkView]
    watch: WatchView | None
    """None: no folder is watched."""
    disk_free_mib: int | None
    event_streams: int
    last_event: int


def router(parts: ServiceParts) -> APIRouter:
    """GET /v1/status."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/v1/status", responses=problems(429, 503))
    def status(request: Request) -> StatusView:
        """Queue, latencies, limits, sinks, watch folder."""
        reasons = list(reasons_against(parts))
        settings, bundle, counts = parts.settings, parts.bundle, parts.journal.counts()
        return StatusView(
            version=__version__,
            profile=settings.profile,
            at=time.time(),
            uptime_s=parts.metrics.uptime_s(),
            ready=not reasons,
            reasons=reasons,
            bundle={
                "name": bundle.settings.name,
                "sha256": bundle.sha256,
                "precision": bundle.settings.precision,
                "engine": bundle.settings.engine,
            },
            tasks=sorted(bundle.prompts.tasks),
            default_tasks=list(settings.model.tasks),
            label=settings.model.label,
            counts=counts,
            pipeline=pipeline_view(parts.pipeline.status()),
            latency_ms=parts.metrics.percentiles(),
            sinks=sink_views(parts, counts),
            watch=watch_view(parts),
            disk_free_mib=_free_mib(parts),
            event_streams=len(request.app.state.streams),
            last_event=parts.journal.last_event(),
        )

    return routes


def pipeline_view(status: PipelineStatus) -> dict[str, Any]:
    """JSON of the pipeline's own account."""
    limits = status.limits
    return {
        "running": status.running,
        "problem": without_paths(status.problem),
        "waits_for": without_paths(status.waits_for),
        "ready_tiles": status.ready_tiles,
        "working": [{"scene": scene_id, "tile": tile} for scene_id, tile in status.working],
        "tiles_per_s": status.tiles_per_s,
        "eta_s": status.eta_s,
        "limits": dataclasses.asdict(limits),
    }


def sink_views(parts: ServiceParts, counts: dict[str, Any]) -> list[SinkView]:
    """One for each courier that was started."""
    return [
        SinkView(
            name=sink.name,
            waiting=counts["outbox"].get(sink.name, 0),
            dead=counts["dead_messages"].get(sink.name, 0),
            sent=sink.sent,
            failures=sink.failures,
            problem=without_paths(sink.problem),
        )
        for sink in (courier.status() for courier in parts.couriers)
    ]


def watch_view(parts: ServiceParts) -> WatchView | None:
    watcher = parts.watcher
    if watcher is None:
        return None
    return WatchView(accepted=watcher.accepted, refused=watcher.refused, problem=without_paths(watcher.problem))


def _free_mib(parts: ServiceParts) -> int | None:
    try:
        return shutil.disk_usage(parts.settings.data_dir).free >> 20
    except OSError:
        return None

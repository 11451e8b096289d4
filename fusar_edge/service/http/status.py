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
    disk_free_mib: int | None
    event_streams: int
    last_event: int


def router(parts: ServiceParts) -> APIRouter:
    """GET /v1/status."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/v1/status", responses=problems(429, 503))
    def status(request: Request) -> StatusView:
        """Queue, latencies, limits, sinks."""
        reasons = list(reasons_against(parts))
        settings, bundle = parts.settings, parts.bundle
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
            counts=parts.journal.counts(),
            pipeline=pipeline_view(parts.pipeline.status()),
            latency_ms=parts.metrics.percentiles(),
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


def _free_mib(parts: ServiceParts) -> int | None:
    try:
        return shutil.disk_usage(parts.settings.data_dir).free >> 20
    except OSError:
        return None

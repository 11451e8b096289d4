"""Is the process alive, and is it of use? For systemd, load balancers and people."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from fusar_edge.errors import EdgeError
from fusar_edge.service.http.problems import problem, without_paths
from fusar_edge.service.parts import ServiceParts


class Health(BaseModel):
    status: str


def router(parts: ServiceParts) -> APIRouter:
    """GET /healthz, GET /readyz: open to all."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """The process answers. Whether it is of use is asked at /readyz."""
        return Health(status="alive")

    @routes.get("/readyz", response_model=Health)
    def readyz() -> Health | Response:
        """200: scenes that are given now are worked on. 503: not, and why; what was accepted is kept."""
        reasons = list(reasons_against(parts))
        if reasons:
            return problem(503, "; ".join(reasons), {"Retry-After": "10"}, reasons=reasons)
        return Health(status="ready")

    return routes


def reasons_against(parts: ServiceParts) -> Iterator[str]:
    """Why no scene can be worked on now; none: all is well."""
    engine = parts.pipeline.status()
    if engine.problem:
        yield f"engine: {without_paths(engine.problem)}"
    elif not engine.running:
        yield "engine: not running"
    if engine.waits_for:
        yield f"waiting: {without_paths(engine.waits_for)}"
    try:
        parts.journal.last_event()
    except EdgeError as error:
        yield f"journal: {without_paths(str(error))}"
    yield from _disk(parts)


def _disk(parts: ServiceParts) -> Iterator[str]:
    folder, needed = parts.settings.data_dir, parts.settings.limits.free_disk_mib
    try:
        free_mib = shutil.disk_usage(folder).free >> 20
        read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as error:
        yield f"disk: the data folder cannot be reached ({error.strerror})"
        return
    if read_only:
        yield "disk: read-only"
    elif free_mib < needed:
        yield f"disk: {free_mib} MiB are free, {needed} are needed"

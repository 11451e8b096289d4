"""The application: routes of every part behind one gate."""

from __future__ import annotations

import importlib
import importlib.util

from fastapi import FastAPI

from fusar_edge import __version__
from fusar_edge.service.http import events, health, metrics, scenes, session, stac, status, uploads
from fusar_edge.service.http.auth import Door
from fusar_edge.service.http.documented import document
from fusar_edge.service.http.events import Streams
from fusar_edge.service.http.gate import Gate
from fusar_edge.service.http.problems import add_handlers
from fusar_edge.service.parts import ServiceParts

ROUTERS = (health, metrics, status, session, uploads, stac, scenes, events)
ABOUT = (
    """SAR scenes in, georeferenced captions and detections out. Errors are `application/problem+json` (RFC 9457)."""
)


def make_app(parts: ServiceParts) -> FastAPI:
    """All routes over running parts; starts nothing. `app.state.streams.close()` ends what would never end itself."""
    app = FastAPI(
        title="fusar-edge",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # its page loads scripts of others
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.door = Door(parts.settings.http, parts.tokens)
    app.state.streams = Streams(parts.settings.limits.event_streams)
    add_handlers(app)
    for part in ROUTERS:
        app.include_router(part.router(parts))
    for name in ("chat",) if parts.settings.profile == "onboard" else ("chat", "page"):
        _include(app, name, parts)
    document(app)
    app.add_middleware(Gate, door=app.state.door, metrics=parts.metrics)
    return app


def _include(app: FastAPI, name: str, parts: ServiceParts) -> None:
    module = f"fusar_edge.service.http.{name}"
    if importlib.util.find_spec(module):
        app.include_router(importlib.import_module(module).router(parts))

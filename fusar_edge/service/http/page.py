"""The page: its files, from memory, and the pictures that it shows. Nothing in it comes from another server."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from fusar_edge.service.http import pictures
from fusar_edge.service.parts import ServiceParts

FOLDER = Path(__file__).parent.parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Not guessed: a machine's table of types may say otherwise, and a browser runs no module of another type."""


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    body: bytes
    packed: bytes
    """gzip of `body`: the map library is 1.6 MB, a third of it packed."""
    media_type: str
    tag: str


def read_assets(folder: Path = FOLDER) -> dict[str, Asset]:
    """Relative POSIX path -> file; files of other types are no part of the page."""
    return {
        path.relative_to(folder).as_posix(): _asset(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in TYPES and path.is_file()
    }


def router(parts: ServiceParts) -> APIRouter:
    """`/`, `/page/...` and the pictures of scenes."""
    assets = read_assets()
    api = APIRouter()

    @api.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return _answer(request, assets["index.html"])

    @api.get("/page/{name:path}", include_in_schema=False)
    def asset(request: Request, name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "the page has no such file")
        return _answer(request, assets[name])

    api.include_router(pictures.router(parts))
    return api


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return Asset(body, gzip.compress(body, 6, mtime=0), TYPES[path.suffix], tag)


def _answer(request: Request, asset: Asset) -> Response:
    """Asked for anew each time, answered with 304 while it is the same: an update of the service is seen at once."""
    headers = {"ETag": asset.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, 200, {**headers, "Content-Encoding": "gzip"}, asset.media_type)
    return Response(asset.body, 200, headers, asset.media_type)

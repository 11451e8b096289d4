"""A service without engines: real journal, intake and tokens; a pipeline that only says how it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.http.metrics import Metrics
from fusar_edge.service.intake.intake import Intake
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.journal import Journal, SceneRow
from fusar_edge.service.parts import ServiceParts
from fusar_edge.service.pipeline import PipelineStatus, WorkLimits
from fusar_edge.service.settings import HttpSettings, LimitSettings, ServiceSettings

WELL = PipelineStatus(
    running=True,
    problem="",
    waits_for="",
    ready_tiles=3,
    working=[("0123456789abcdef", 7)],
    tiles_per_s=2.5,
    eta_s=None,
    limits=WorkLimits(),
)
ANY_PORT = HttpSettings(port=0)
LIMITS = LimitSettings(upload_mib=2, free_disk_mib=1, event_streams=3)


class StillPipeline:
    """Knows its state and counts who woke it."""

    def __init__(self) -> None:
        self.state = WELL
        self.woken = 0

    def status(self) -> PipelineStatus:
        return self.state

    def wake(self) -> None:
        self.woken += 1

    def submit(self, job: Callable[[Any], Any]) -> Future[Any]:
        raise AssertionError("no test of these asks a question")

    def breaks(self, problem: str) -> None:
        self.state = replace(WELL, running=False, problem=problem)


def settings_for(folder: Path, **changes: Any) -> ServiceSettings:
    """Small limits, data below `folder`."""
    return ServiceSettings(
        **{"data_dir": folder / "data", "limits": LIMITS, "profile": "onboard", "http": ANY_PORT, **changes}
    )


def make_parts(bundle: Bundle, settings: ServiceSettings, prober: Prober) -> Any:
    """Parts over a fresh journal; typed loosely, since the pipeline is none."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(settings.data_dir / "journal.sqlite", ["files"])
    pipeline: Any = StillPipeline()
    intake = Intake(settings, bundle, journal, pipeline.wake)
    intake.prober = prober  # one child process for all tests: it takes half a second to start
    return ServiceParts(settings, bundle, journal, pipeline, intake, Metrics())


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """One request to the application itself, without a socket."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


def write_tiff(path: Path, side: int = 64, seed: int = 0) -> Path:
    """A located GeoTIFF of speckle."""
    import rasterio
    from rasterio.transform import Affine

    values = np.random.default_rng(seed).integers(1, 200, (1, side, side), np.uint8)
    place = {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
    with rasterio.open(path, "w", driver="GTiff", count=1, height=side, width=side, dtype="uint8", **place) as file:
        file.write(values)
    return path


def accepted(parts: ServiceParts, folder: Path, seed: int = 0, **options: Any) -> SceneRow:
    """A scene in the journal, through the intake's own door."""
    path = write_tiff(folder / f"given-{seed}.tif", seed=seed)
    row, _ = parts.intake.offer(path, name=path.name, source="upload", owned=True, **options)
    return row

"""An intake over a fresh journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from intake_station import LIMITS, Open, Station

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.intake.intake import Intake
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.journal import Journal
from fusar_edge.service.settings import LimitSettings, ServiceSettings, StacSettings


@pytest.fixture
def station_with(tmp_path: Path, bundle: Bundle, prober: Prober) -> Iterator[Open]:
    """`station_with(limits=..., stac=...)`; a second call opens the same data folder again."""
    made: list[Station] = []

    def make(limits: LimitSettings = LIMITS, stac: StacSettings | None = None) -> Station:
        settings = ServiceSettings(data_dir=tmp_path / "data", limits=limits, stac=stac or StacSettings())
        settings.data_dir.mkdir(exist_ok=True)
        journal, wakes = Journal.open(settings.data_dir / "journal.sqlite", ["files"]), list[None]()
        intake = Intake(settings, bundle, journal, lambda: wakes.append(None))
        intake.prober = prober
        made.append(Station(intake, journal, wakes))
        return made[-1]

    yield make
    for station in made:
        station.journal.close()


@pytest.fixture
def station(station_with: Open) -> Station:
    return station_with()

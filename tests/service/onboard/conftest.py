from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from downlink_scenes import SimulatedScene, simulated_scenes

from fusar_edge.service.journal import Journal


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[SimulatedScene]:
    return simulated_scenes(tmp_path_factory.mktemp("onboard"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", ())
    yield opened
    opened.close()

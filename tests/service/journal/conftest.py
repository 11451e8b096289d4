from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from journal_scenes import SINKS

from fusar_edge.service.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", SINKS)
    yield opened
    opened.close()

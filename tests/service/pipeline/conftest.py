"""A bundle of small tiles, a journal, and what ends by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_fakes import Ended, small_tiles

from fusar_edge.runtime.bundle import DEFAULT, Bundle
from fusar_edge.service.journal import Journal


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return small_tiles()


@pytest.fixture(autouse=True)
def stops(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A pipeline that is stopped ends: a thread that hangs would only be logged."""
    yield
    assert "did not end within 30 s" not in caplog.text


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", ["sink"])
    yield opened
    opened.close()


@pytest.fixture
def ended(journal: Journal) -> Ended:
    return Ended(journal)

"""What every part of the service is tested with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fusar_edge.runtime.bundle import Bundle, open_bundle
from fusar_edge.service.intake.probe import Prober


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return open_bundle("default")


@pytest.fixture(scope="session")
def prober() -> Iterator[Prober]:
    """One child process for all tests: it takes half a second to start."""
    child = Prober()
    yield child
    child.close()

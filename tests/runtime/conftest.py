"""One fake bundle for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import write_fake_bundle

from fusar_edge.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Read only: tests that change a file write their own."""
    return write_fake_bundle(Path(tmp_path_factory.mktemp("bundle")) / "fake")

"""Fixtures that every part shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real SAR and AlphaEarth data; the test skips on a machine without it."""
    folder = Path(os.environ.get("FUSAR_EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ssdd").is_dir():
        pytest.skip(f"real data not found in {folder}; set FUSAR_EDGE_DATA to its folder")
    return folder

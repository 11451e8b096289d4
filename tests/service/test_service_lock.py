"""One service at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusar_edge.errors import InputError
from fusar_edge.service.lock import only_service


def test_a_data_folder_has_one_service_at_a_time(tmp_path: Path) -> None:
    busy = pytest.raises(InputError, match=rf"used by another service \(process {os.getpid()}\)")
    with only_service(tmp_path / "data"), busy, only_service(tmp_path / "data"):
        pass
    with only_service(tmp_path / "data"):
        pass


def test_a_killed_service_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fusar_edge.service.lock import only_service\n"
        "with only_service(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    with only_service(tmp_path):
        pass


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"lock: cannot be opened"), only_service(tmp_path / "file" / "data"):
        pass

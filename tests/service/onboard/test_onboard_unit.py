"""deploy/: the systemd unit is well formed and as closed as it says."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusar_edge.cli import app

DEPLOY = Path(__file__).parents[3] / "deploy"
UNIT = DEPLOY / "fusar-edge.service"
EXPOSURE = 12
"""Of 100, as `systemd-analyze security` counts; 10 by systemd 252."""


def settings(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def analyze(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze` on a copy of which the program exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    lines = UNIT.read_text().splitlines()
    copy.write_text("\n".join("ExecStart=/bin/true" if line.startswith("ExecStart=") else line for line in lines))
    command = ["systemd-analyze", *arguments, str(copy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_takes_every_line_of_the_unit(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_as_closed_as_it_says(tmp_path: Path) -> None:
    done = analyze(tmp_path, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}")
    assert done.returncode == 0, done.stdout


def test_the_unit_gives_no_right_that_the_service_does_not_need() -> None:
    unit = settings(UNIT)
    for name in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectHome",
        "ProtectKernelTunables",
        "MemoryDenyWriteExecute",
        "RestrictNamespaces",
    ):
        assert unit[name] == ["yes"], name
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
    assert unit["User"] == ["fusar-edge"]
    assert f"u {unit['User'][0]} " in (DEPLOY / "fusar-edge.sysusers").read_text()
    assert (unit["IPAddressDeny"], unit["IPAddressAllow"]) == (["any"], ["localhost"])


def test_the_gpu_drop_in_changes_only_settings_that_the_unit_has() -> None:
    assert set(settings(DEPLOY / "gpu.conf")) - {"SupplementaryGroups"} <= set(settings(UNIT))


def test_the_command_of_the_unit_is_one_that_the_command_line_knows() -> None:
    program, verb, *options = shlex.split(settings(UNIT)["ExecStart"][0])
    assert program.endswith("/bin/fusar-edge")
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).stdout
    assert all(option in shown for option in options if option.startswith("--"))

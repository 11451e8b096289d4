"""The clock of tests/benchmarks and its wiring: a path that got slower fails, a machine that is slower does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parent.parent / "benchmarks"

# A machine in miniature: time passes only where the test says so. `speed` slows everything, `path` the path alone.
TEST = """
import json
from pathlib import Path

import kernel_clock

speed, path = json.loads(Path("machine.json").read_text())


class Machine:
    seconds = 0.0

    def now(self):
        Machine.seconds += 1e-8
        return Machine.seconds

    def kernel(self):
        return 1.0 * speed


def step():
    Machine.seconds += 0.004 * speed * path


machine = Machine()
clock = kernel_clock.CLOCKS["numbers"]
clock.kernel, clock._now = machine.kernel, machine.now


def test_path(benchmark):
    benchmark.pedantic(step, rounds=5, iterations=1)
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for name in ("conftest.py", "kernel_clock.py"):
        shutil.copy(SUITE / name, tmp_path)
    (tmp_path / "test_path.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: x\nfilterwarnings = error\n")
    return tmp_path


def run(suite: Path, speed: float, path: float, *options: str) -> subprocess.CompletedProcess[str]:
    (suite / "machine.json").write_text(f"[{speed}, {path}]")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=suite, capture_output=True, text=True, timeout=120, check=False)


def test_a_path_that_got_slower_is_named_and_a_machine_that_is_slower_is_not(suite: Path) -> None:
    compare = ("--benchmark-compare=base.json", "--benchmark-compare-fail=min:20%")
    made = run(suite, 1.0, 1.0, "--benchmark-json=base.json")
    assert made.returncode == 0, made.stdout
    base = (suite / "base.json").read_text()
    assert '"kernel_ms": 1.0' in base
    assert '"node"' not in base
    assert '"data"' not in base
    machine = run(suite, 3.0, 1.0, *compare)
    assert machine.returncode == 0, machine.stdout + machine.stderr
    path = run(suite, 3.0, 1.25, *compare)
    assert path.returncode != 0
    assert "Performance has regressed" in path.stdout + path.stderr
    assert "test_path" in path.stdout + path.stderr

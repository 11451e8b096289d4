"""What tests of the benchmark share: the default bundle on a small simulated scene, one question a tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusar_edge.bench.workload import Workload, open_workload, simulated_workload
from fusar_edge.runtime.bundle import DEFAULT, open_bundle
from fusar_edge.runtime.session import Session


def default_session(threads: int = 1) -> Session:
    if not (DEFAULT / "manifest.json").is_file():
        pytest.skip("this checkout holds no default bundle")
    return Session(open_bundle("default"), threads)


@contextlib.contextmanager
def small_workload(session: Session, folder: Path, tasks: tuple[str, ...] = ("count",)) -> Iterator[Workload]:
    """Four tiles."""
    path, boxes = simulated_workload(folder, session.bundle, 944)
    out = folder / "tile.geojson"
    with open_workload(path, tasks, session, out=out, boxes=boxes, values="power") as workload:
        yield workload

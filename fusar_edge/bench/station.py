"""The service as a ground station runs it, in a process of its own, for the scenario `live`: scenes go in by HTTP."""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fusar_edge.bench.workload import Workload
from fusar_edge.errors import EdgeError

START_S = 60.0
DONE, FAILED = "scene.done", "scene.failed"


class Station:
    """A running service; `submit` gives it one tile as a scene, `done` says when one is finished."""

    def __init__(self, bundle: str | Path, work: Workload, folder: Path, threads: int, anchors: Path | None) -> None:
        import httpx

        self._work, self._folder = work, folder
        folder.mkdir()
        self._log = folder / "service.log"
        self._process = _serve(bundle, work, folder, self._log, threads, anchors)
        try:
            self._client = httpx.Client(base_url=_address(self._process, self._log), timeout=60.0)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self._finished: queue.SimpleQueue[tuple[str, str, float]] = queue.SimpleQueue()
        self._files = 0
        self._tiles: dict[int, bytes] = {}
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()
        if not self._listening.wait(START_S):
            self.close()
            raise EdgeError(f"the service opens no stream of events: {_tail(self._log)}")

    def prepare(self, tile: int) -> bytes:
        """One tile as a GeoTIFF of its own; its last bytes are new: the service takes equal files for the same scene.

        Each is encoded once: while tiles arrive, making them would take time from the service and delay arrivals.
        """
        if tile not in self._tiles:
            self._tiles[tile] = _tile_bytes(self._work, tile, self._folder / "tile.tif")
        self._files += 1
        return self._tiles[tile] + self._files.to_bytes(8, "little")  # behind all that a TIFF's directory points to

    def submit(self, body: bytes, number: int) -> str:
        """Returns the scene's id once the service has accepted it. EdgeError with its reason where it has not."""
        query: dict[str, Any] = {"name": f"query-{number}.tif", "tasks": list(self._work.tasks)}
        answer = self._client.post("/v1/scenes", params=query, content=body, headers={"Content-Type": "image/tiff"})
        if answer.status_code not in (200, 202):
            raise EdgeError(f"the service refused a tile ({answer.status_code}): {answer.text[:200]}")
        return str(answer.json()["id"])

    def done(self, timeout_s: float) -> tuple[str, float] | None:
        """Id and `perf_counter` of the next scene that is finished; None if none is within the time."""
        with contextlib.suppress(queue.Empty):
            kind, scene, at = self._finished.get(timeout=max(timeout_s, 0.0))
            if kind == FAILED:
                raise EdgeError(f"the service failed on scene {scene}; its log: {_tail(self._log)}")
            return scene, at
        if self._process.poll() is not None:
            raise EdgeError(f"the service ended with exit code {self._process.returncode}: {_tail(self._log)}")
        return None

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(10.0)
        self._client.close()

    def _listen(self) -> None:
        """Server-sent events, one JSON object in each `data` line."""
        import httpx

        with contextlib.suppress(httpx.HTTPError), self._client.stream("GET", "/v1/events", timeout=None) as stream:
            self._listening.set()
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    event = msgspec.json.decode(line.removeprefix("data:").strip())
                    if event.get("kind") in (DONE, FAILED):
                        self._finished.put((event["kind"], event["scene"], time.perf_counter()))


def can_serve() -> bool:
    """Whether the extra `service` is installed."""
    from fusar_edge.service.service import PACKAGES

    return all(find_spec(name) is not None for name in PACKAGES)


@contextlib.contextmanager
def open_station(
    bundle: str | Path, work: Workload, folder: Path, threads: int = 0, anchors: Path | None = None
) -> Iterator[Station]:
    """A service on a free port of this machine, its data in `folder`."""
    station = Station(bundle, work, folder, threads, anchors)
    try:
        yield station
    finally:
        station.close()


def _serve(
    bundle: str | Path, work: Workload, folder: Path, log: Path, threads: int, anchors: Path | None
) -> subprocess.Popen[bytes]:
    """Every tile is asked about: triage would leave out those of the open sea."""
    settings = folder / "service.toml"
    settings.write_text('[triage]\nmode = "nodata"\n')
    command: list[str] = [sys.executable, "-m", "fusar_edge", "serve", str(bundle), "--settings", str(settings)]
    command += ["--data-dir", str(folder / "data"), "--host", "127.0.0.1", "--port", "0", "--label", work.label]
    for task in work.tasks:
        command += ["--task", task]
    if threads:
        command += ["--workers", "1", "--threads", str(threads)]
    if anchors is not None:
        command += ["--anchors", str(anchors)]
    with open(log, "wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the service says first, once it accepts requests."""
    import httpx

    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text(errors="replace"))
        if found:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{found[0]}/readyz", timeout=5.0).status_code == 200:
                    return found[0]
        time.sleep(0.1)
    raise EdgeError(f"the service did not start: {_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"


def _tile_bytes(work: Workload, tile: int, path: Path) -> bytes:
    import rasterio
    from rasterio.windows import Window

    window = work.windows[tile]
    part = Window(window.col_off, window.row_off, window.width, window.height)
    with rasterio.open(work.scene.path) as source:
        values = source.read(work.scene.band, window=part)
        profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "nodata": source.nodata}
        profile |= {"width": window.width, "height": window.height, "tiled": True, "compress": "deflate", "zlevel": 1}
        profile |= {
            "crs": source.crs,
            "transform": _moved(source.transform, window.col_off, window.row_off),
            "blockxsize": 256,
            "blockysize": 256,
        }
        tags = source.tags()
    with rasterio.open(path, "w", **profile) as target:
        target.write(values, 1)
        target.update_tags(**tags)
    return path.read_bytes()


def _moved(transform: Any, col: int, row: int) -> Any:
    """Of a window whose first pixel is (row, col). rasterio's own way warns with affine 3."""
    a, b, c, d, e, f = transform[:6]
    return type(transform)(a, b, c + a * col + b * row, d, e, f + d * col + e * row)


def arrivals(mean_gap_s: float, start: float, random: np.random.Generator) -> Iterator[float]:
    """Instants of a Poisson process."""
    at = start
    while True:
        at += random.exponential(mean_gap_s)
        yield at


def closed_loop(station: Station, tiles: Sequence[int]) -> list[float]:
    """Milliseconds from submitting to done of one tile after the other: the service has nothing else to do."""
    times = []
    for number, tile in enumerate(tiles):
        body = station.prepare(tile)
        start = time.perf_counter()
        scene = station.submit(body, number)
        while (finished := station.done(60.0)) is None or finished[0] != scene:
            pass
        times.append((finished[1] - start) * 1e3)
    return times


def saturated(station: Station, tiles: Sequence[int]) -> float:
    """Seconds a tile when all of them wait at once: what the service can do, its stages overlapping."""
    bodies = [station.prepare(tile) for tile in tiles]
    start = time.perf_counter()
    waiting = {station.submit(body, number) for number, body in enumerate(bodies)}
    while waiting:
        finished = station.done(60.0)
        if finished is not None:
            waiting.discard(finished[0])
            end = finished[1]
    return (end - start) / len(tiles)

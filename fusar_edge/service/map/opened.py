"""Scenes that the map has open: a few, each used by one request at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from fusar_edge.errors import SceneError
from fusar_edge.sar.radiometry import Radiometry
from fusar_edge.sar.scene import Scene, open_scene

KEPT = 4


class OpenScenes:
    """A scene is taken out, used, and put back; two requests for one scene open it twice."""

    def __init__(self, radiometry: Radiometry) -> None:
        self._radiometry = radiometry
        self._idle: OrderedDict[tuple[str, int, int], Scene] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: Path, size_bytes: int, mtime_ns: int) -> Scene:
        """A scene of its own, the caller closes it; SceneError where the file is not what was accepted."""
        try:
            found = path.stat()
        except OSError:
            raise SceneError(f"{path.name} is gone: its picture cannot be shown any more") from None
        if (found.st_size, found.st_mtime_ns) != (size_bytes, mtime_ns):
            raise SceneError(f"{path.name} was changed since it was accepted: its picture would not be the answers'")
        return open_scene(path, radiometry=self._radiometry)

    @contextlib.contextmanager
    def use(self, path: Path, size_bytes: int, mtime_ns: int) -> Iterator[Scene]:
        """A scene for the time of the block."""
        key = (str(path), size_bytes, mtime_ns)
        with self._lock:
            scene = self._idle.pop(key, None)
        scene = scene or self.open(path, size_bytes, mtime_ns)
        try:
            yield scene
        except BaseException:
            scene.close()
            raise
        with self._lock:
            doubled = self._idle.pop(key, None)
            self._idle[key] = scene
            spare = [doubled] if doubled else []
            while len(self._idle) > KEPT:
                spare.append(self._idle.popitem(last=False)[1])
        for other in spare:
            other.close()

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.popitem()[1].close()

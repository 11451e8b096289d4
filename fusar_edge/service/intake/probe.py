"""A child process that opens a file with GDAL before the service does: a crash, a hang or a bomb ends there."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import msgspec

from fusar_edge.errors import SceneError

TIMEOUT_S = 60.0
IDLE_S = 120.0
"""A child without work ends after this; its 70 MB are free again."""
MEMORY_BYTES = 1 << 30
"""Address space that one reading may add to what the imports took."""
SMALL_PIXELS = 16 << 20
"""Up to so many pixels every one is read; of a larger scene the samples that `open_scene` judges it by."""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "GDAL_DATA", "PROJ_DATA", "PROJ_LIB", "LANG", "LC_ALL", "SYSTEMROOT")
"""All that the child inherits: no secret, no GDAL option, no driver path."""


class Facts(msgspec.Struct, frozen=True):
    """What the file holds."""

    width: int
    height: int
    kind: str
    acquired: str | None
    located: bool


class _Question(msgspec.Struct):
    path: str
    name: str
    located: bool


class _Reply(msgspec.Struct):
    facts: Facts | None = None
    problem: str = ""


class Prober:
    """One child, started when it is first needed and again after it ended; one file at a time."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None

    def facts(self, path: Path, *, name: str, located: bool = True) -> Facts:
        """SceneError, naming `name` and no path, where the file cannot be read or the child does not survive it."""
        question = msgspec.json.encode(_Question(str(path.absolute()), name, located)) + b"\n"
        with self._lock:
            line = self._ask(question, name)
        reply = msgspec.json.decode(line, type=_Reply)
        if reply.facts is None:
            raise SceneError(reply.problem)
        return reply.facts

    def close(self) -> None:
        """End the child. Also done when the object goes or the process ends."""
        with self._lock:
            self._stop()

    def _ask(self, question: bytes, name: str) -> bytes:
        for _ in range(2):  # a child that ended of idleness is not the file's fault
            child = self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(question)
                child.stdin.flush()
                ready, _, _ = select.select([child.stdout], [], [], self._timeout_s)
                line = child.stdout.readline() if ready else b""
            except BrokenPipeError:
                ready, line = [child.stdout], b""
            if line.endswith(b"\n"):
                return line
            status = child.wait() if ready else None
            self._stop()
            if status != 0:
                break
        fate = f"takes longer than {self._timeout_s:.0f} s" if status is None else f"ended its reader ({_fate(status)})"
        raise SceneError(f"{name}: reading it {fate}; the file is damaged, or made to do harm: write it anew")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            self._end = weakref.finalize(self, _end, self._child)
        return self._child

    def _command(self) -> list[str]:
        code = f"import sys; sys.path[:] = {sys.path!r}; from fusar_edge.service.intake.probe import main; main()"
        return [sys.executable, "-c", code]

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._child = self._end = None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _fate(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


# The child ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer one line of JSON with one until the pipe closes or nothing comes for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which ends us
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    import pyproj  # noqa: F401
    import rasterio  # noqa: F401

    import fusar_edge.sar.scene  # noqa: F401

    _limit_resources()
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.buffer.readline()):
        out.write(msgspec.json.encode(_reply(msgspec.json.decode(line, type=_Question))) + b"\n")
        out.flush()


def _limit_resources() -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    for kind, value in (
        (resource.RLIMIT_AS, limit),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # it has nothing to write
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))


def _reply(question: _Question) -> _Reply:
    from fusar_edge.errors import EdgeError
    from fusar_edge.sar.scene import open_scene
    from fusar_edge.sar.tiles import plan_tiles

    path = Path(question.path)
    try:
        with open_scene(path, located=question.located) as scene:
            located = scene.geolocation is not None
            windows = plan_tiles(scene.width, scene.height, 1024, 0)
            if scene.width * scene.height <= SMALL_PIXELS:
                for window in windows:
                    scene.read(window)
            if located:
                for window in {windows[0]: None, windows[-1]: None}:
                    scene.footprint(window)
            return _Reply(Facts(scene.width, scene.height, str(scene.kind), scene.acquired, located))
    except EdgeError as problem:
        return _Reply(problem=_without_path(str(problem), path, question.name))
    except MemoryError:
        return _Reply(problem=f"{question.name}: reading it takes more memory than a scene may; write it anew, tiled")
    except Exception as problem:
        # An untrusted file may reach errors of GDAL, PROJ and NumPy that no reader foresaw.
        kind = type(problem).__name__
        return _Reply(problem=f"{question.name} cannot be read ({kind}); the file is damaged: write it anew")


def _without_path(message: str, path: Path, name: str) -> str:
    for text, shown in ((str(path), name), (path.name, name)):
        message = message.replace(text, shown)
    return message

"""The watch folder: files that are complete are offered, each once."""

from __future__ import annotations

import fcntl
import fnmatch
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusar_edge.errors import BusyError, InputError
from fusar_edge.service.intake.intake import Intake, UnreadableError
from fusar_edge.service.journal import Journal
from fusar_edge.service.settings import WatchSettings

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 30.0
UNREADABLE_RETRY_S = 30.0
"""A file that the system does not give (permissions, a failing disk) is tried again so much later."""
UNFINISHED = (".part", ".tmp")

State = tuple[int, int]
"""Size in bytes, modification time in ns."""


@dataclass
class _Sighting:
    state: State
    since: float
    """Seconds of the clock at the first look that found this state."""
    settled: bool = False
    """Accepted or refused in this state: nothing more is done about it."""
    unreadable: str = ""
    """Why the last try could not read it."""


class Watcher(threading.Thread):
    """Offers what lies in the folder itself: no subfolders, no links, nothing hidden, nothing named .part or .tmp.

    A file is complete when its size and time have not changed for `stable_s` and no process has it open for writing,
    where the file system can tell. Refusals are kept in the journal and stand until the file changes; where there is no
    room the oldest file waits, and the others behind it.
    """

    def __init__(
        self,
        intake: Intake,
        journal: Journal,
        settings: WatchSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="watcher", daemon=True)
        if settings.folder is None:
            raise InputError("the watcher needs [watch] folder")
        self.folder = settings.folder.absolute()
        self.accepted = self.refused = 0
        """Files since the start."""
        self.problem = ""
        """Why the folder cannot be read now, or what it waits for; empty when all is well."""
        self._intake, self._journal, self._settings = intake, journal, settings
        self._clock = clock
        self._seen: dict[str, _Sighting] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            try:
                wait_s = self.look()
            except Exception as problem:  # a full journal, say: the next look may be better, and there has to be one
                log.exception("%s: could not be looked at", self.folder)
                self.problem = f"the watch folder was not looked at ({type(problem).__name__}); the log says why"
                wait_s = LONGEST_WAIT_S

    def stop(self, timeout_s: float = 30.0) -> None:
        """Ends after the file in hand."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout_s)

    def look(self) -> float:
        """One look at the folder; returns the seconds until the next."""
        try:
            found = self._files()
        except OSError as problem:
            if not self.problem:
                log.error("%s: cannot be watched (%s)", self.folder, problem.strerror)
            self.problem = f"the watch folder cannot be read ({problem.strerror})"
            return self._settings.poll_s
        self._seen = {name: sighting for name, sighting in self._seen.items() if name in found}
        for name in sorted(found, key=lambda n: (found[n][1], n)):
            if self._stopping.is_set():
                break
            try:
                if self._complete(name, found[name]):
                    self._offer(name, found[name])
            except BusyError as busy:
                if self.problem != f"{busy}":
                    log.warning("%s waits: %s", name, busy)
                self.problem = f"{busy}"
                return min(busy.retry_after_s, LONGEST_WAIT_S)
        self.problem = next((s.unreadable for s in self._seen.values() if s.unreadable), "")
        return self._settings.poll_s

    def _files(self) -> dict[str, State]:
        """Candidates and their states."""
        found = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                lower = entry.name.lower()
                if lower.startswith(".") or lower.endswith(UNFINISHED):
                    continue
                if not any(fnmatch.fnmatchcase(lower, pattern.lower()) for pattern in self._settings.patterns):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[entry.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _complete(self, name: str, state: State) -> bool:
        """Whether a file is worth an offer now."""
        sighting = self._seen.get(name)
        if sighting is None or sighting.state != state:
            known = self._journal.watched(self.folder / name, *state)
            self._seen[name] = _Sighting(state, self._clock(), settled=known is not None)
            return False
        stable = self._clock() - sighting.since >= self._settings.stable_s
        return stable and not sighting.settled and not _open_for_writing(self.folder / name)

    def _offer(self, name: str, state: State) -> None:
        path = self.folder / name
        scene_id = reason = ""
        try:
            row, _ = self._intake.offer(path, name=name, source="watch", owned=False, submitted_as=str(path))
            scene_id = row.id
            self.accepted += 1
        except UnreadableError as problem:
            sighting = self._seen[name]
            if sighting.unreadable != str(problem):
                log.warning("%s; it is tried again every %g s", problem, UNREADABLE_RETRY_S)
            sighting.unreadable = str(problem)
            sighting.since = self._clock() + UNREADABLE_RETRY_S - self._settings.stable_s
            return
        except InputError as refusal:
            reason = str(refusal)
        except BusyError:
            raise
        except Exception as problem:  # one file must not end the watch over all the others
            log.exception("%s could not be offered", path)
            reason = f"{name}: the service failed on it ({type(problem).__name__}); its log says why"
        if reason:
            self.refused += 1
            log.warning("refused: %s", reason)
        self._journal.note_watched(path, *state, scene_id, refused_reason=reason)
        self._seen[name].settled, self._seen[name].unreadable = True, ""


def _open_for_writing(path: Path) -> bool:
    """Whether some process still writes: a read lease is refused then (Linux, local file systems, own files).

    False where it cannot be known: then the time that the file did not change has to do.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # A writer that opens it while we hold the lease would have us killed by SIGIO; SIGURG is ignored by default.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False

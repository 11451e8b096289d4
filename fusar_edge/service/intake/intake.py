"""The one way in: a file is checked, hashed, put in its place, and written into the journal; or nothing of it stays."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fusar_edge.data.tasks import TASKS
from fusar_edge.errors import BusyError, EdgeError, InputError, SceneError
from fusar_edge.manifest import sha256_file
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.interpreter import ordered_tasks
from fusar_edge.service.intake.names import safe_name
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.intake.untrusted import check, check_header
from fusar_edge.service.journal import Journal, NewScene, SceneRow
from fusar_edge.service.settings import ServiceSettings

log = logging.getLogger(__name__)

INCOMING, SCENES = "incoming", "scenes"
FAILED = "failed"
MOST_PRIORITY = 100
LONGEST_LABEL = 64
_ID = re.compile(r"[0-9a-f]{16}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
QUEUE_RETRY_S, OUTBOX_RETRY_S, DISK_RETRY_S = 10.0, 30.0, 60.0


class UnreadableError(SceneError):
    """The system does not give the file now; what is in it is not to blame."""


class Intake:
    """Takes scenes from uploads, the watch folder and STAC. Used by any number of threads."""

    def __init__(self, settings: ServiceSettings, bundle: Bundle, journal: Journal, wake: Callable[[], None]) -> None:
        self.settings, self.bundle, self.journal = settings, bundle, journal
        self.incoming = settings.data_dir / INCOMING
        """Where files arrive; the caller names them NAME.part and gives them to `offer` as owned."""
        self.scenes = settings.data_dir / SCENES
        self.prober = Prober()
        self._wake = wake
        self._placing = threading.Lock()
        for folder in (self.incoming, self.scenes):
            folder.mkdir(parents=True, exist_ok=True)

    def admit(self, size_bytes: int = 0) -> None:
        """BusyError where a new scene of this size has to wait: queue, outbox and free disk are bounded."""
        limits = self.settings.limits
        queued = len(self.journal.open_scenes())
        if queued >= limits.queued_scenes:
            raise BusyError(
                f"{queued} scenes are waiting or in work; at most {limits.queued_scenes} may: send it again later",
                QUEUE_RETRY_S,
            )
        if (waiting := self.journal.outbox_count()) >= limits.outbox_messages:
            raise BusyError(
                f"{waiting} results could not be delivered yet (at most {limits.outbox_messages} may wait): no scene "
                "is taken until their receivers are back",
                OUTBOX_RETRY_S,
            )
        self.admit_bytes(size_bytes)

    def admit_bytes(self, size_bytes: int) -> None:
        """BusyError where so much more would take the disk that is kept free."""
        limits = self.settings.limits
        free_mib = shutil.disk_usage(self.settings.data_dir).free - size_bytes >> 20
        if free_mib < limits.free_disk_mib:
            raise BusyError(
                f"no space: the service keeps {limits.free_disk_mib} MiB of its disk free; send it again later",
                DISK_RETRY_S,
            )

    def offer(
        self,
        path: Path,
        *,
        name: str,
        source: Literal["watch", "upload", "stac"],
        owned: bool,
        tasks: Sequence[str] | None = None,
        label: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        submitted_as: str = "",
        acquired: str | None = None,
    ) -> tuple[SceneRow, bool]:
        """Accept a file as a scene; True where it is new, False where the same file and question are known already.
        One that failed is tried again, with the file that was sent now.

        `owned`: the file is ours to move, and is gone after this, whatever comes of it; else it stays where it is and
        is linked. `deadline` in Unix seconds. `acquired` (ISO 8601 UTC) counts where the file itself says no time.
        InputError (no path in it) where the file or the question is refused, BusyError where there is no room now.
        """
        name = safe_name(name)
        try:
            return self._accept(path, name, source, owned, tasks, label, priority, deadline, submitted_as, acquired)
        except OSError as problem:
            if problem.errno in _NO_ROOM:
                raise BusyError("no space: the disk of the service is full or read-only", DISK_RETRY_S) from None
            if isinstance(problem, FileNotFoundError):
                raise SceneError(f"{name} has gone while it was looked at; send it again") from None
            raise UnreadableError(f"{name} cannot be read ({problem.strerror}); check its permissions") from None
        finally:
            if owned:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """At start, before anything arrives: remove what was on its way, and scenes that the journal does not know."""
        for path in self.incoming.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.drop_unknown()

    def drop_unknown(self) -> None:
        """Remove the files of scenes that the journal does not know (any more)."""
        with self._placing:
            for folder in self.scenes.iterdir():
                if _ID.fullmatch(folder.name) and self.journal.scene(folder.name) is None:
                    shutil.rmtree(folder)

    def close(self) -> None:
        """End the child process that reads files first."""
        self.prober.close()

    def _accept(
        self,
        path: Path,
        name: str,
        source: Literal["watch", "upload", "stac"],
        owned: bool,
        tasks: Sequence[str] | None,
        label: str | None,
        priority: int,
        deadline: float | None,
        submitted_as: str,
        acquired: str | None,
    ) -> tuple[SceneRow, bool]:
        asked, label = self._question(tasks, label, priority, deadline)
        limits = self.settings.limits
        check_header(path, name, limits)
        if not owned:  # whoever sends us bytes asked before; a folder is not hashed while nothing can be taken
            self.admit()
        before = path.lstat()
        sha256 = sha256_file(path)
        new = NewScene(
            path=path,
            name=name,
            sha256=sha256,
            size_bytes=before.st_size,
            mtime_ns=before.st_mtime_ns,
            source=source,
            owned=owned,
            tasks=asked,
            label=label,
            bundle_sha256=self.bundle.sha256,
            priority=priority,
            deadline=deadline,
            submitted_as=submitted_as or name,
            acquired=acquired,
        )
        if (known := self.journal.scene(new.id)) is not None and known.status != FAILED:
            return known, False
        check(path, name=name, limits=limits, prober=self.prober)
        after = path.lstat()
        if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
            raise SceneError(f"{name} was changed while it was looked at; send it again when it is complete")
        row, is_new = self._place(path, new)
        if is_new:
            log.info("%s: accepted as scene %s (%s)", name, row.id, source)
            self._wake()
        return row, is_new

    def _question(
        self, tasks: Sequence[str] | None, label: str | None, priority: int, deadline: float | None
    ) -> tuple[tuple[str, ...], str]:
        """Tasks in the order of work and the label, the settings' where none is given; InputError."""
        model = self.settings.model
        given, has = model.tasks if tasks is None else tuple(tasks), self.bundle.prompts.tasks
        if not given or (unknown := [task for task in given if task not in TASKS or task not in has]):
            shown = ", ".join(repr(task[:40]) for task in unknown[:5]) if given else "(none)"
            raise InputError(f"tasks {shown}: allowed are {', '.join(task for task in TASKS if task in has)}")
        asked = ordered_tasks(given, None)
        if "detect" in asked and "detect" not in has:
            raise InputError("classify asks about what detect finds, for which this bundle has no prompt")
        label = model.label if label is None else label
        if not label.strip() or len(label) > LONGEST_LABEL or not label.isprintable():
            raise InputError(
                f"label of {len(label)} characters; 1 to {LONGEST_LABEL} printable ones name what is looked for"
            )
        if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
            raise InputError(f"priority {priority}; allowed is -{MOST_PRIORITY} to {MOST_PRIORITY}")
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            raise InputError("the deadline is no time in Unix seconds")
        return asked, label

    def _place(self, path: Path, new: NewScene) -> tuple[SceneRow, bool]:
        """Put the file where it is ours, durably, then write the journal: what the journal names is on the disk."""
        with self._placing:  # the same file may be sent twice at once; and the queue's bound is exact
            if (known := self.journal.scene(new.id)) is not None and known.status != FAILED:
                return known, False
            self.admit()
            folder = self.scenes / new.id
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                placed = _linked(path, folder / new.name) if not new.owned else path.rename(folder / new.name)
                _sync(placed, folder, self.scenes)
                # As it is now, by the name that the pipeline will open: moving keeps both, a copy tool may not.
                status = placed.lstat()
                if not stat.S_ISREG(status.st_mode) or status.st_size != new.size_bytes:
                    raise SceneError(f"{new.name} was changed while it was looked at; send it again")
                ours = placed.parent == folder
                file = replace(new, path=placed.absolute(), mtime_ns=status.st_mtime_ns, owned=ours)
                return self.journal.accept(file) if known is None else (self.journal.retry(new.id, file=file), True)
            except BaseException:
                with contextlib.suppress(EdgeError):
                    if self.journal.scene(new.id) is None:
                        shutil.rmtree(folder, ignore_errors=True)
                raise


def _linked(path: Path, target: Path) -> Path:
    """A hard link, so that the sender may tidy up; the path itself where the disk, or its owner, forbids one."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError as problem:
        if problem.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
            raise
        return path
    return target


def _sync(*paths: Path) -> None:
    """Data and names are on the disk when this returns: a scene whose sender was told yes survives a power cut."""
    for path in dict.fromkeys(paths):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

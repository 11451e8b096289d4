"""A lean export while it is made: a hidden folder beside OUT, from which one that was killed goes on.

.OUT.exporting/plan.json        what is being made; another plan does not go on from here
.OUT.exporting/journal.jsonl    a line for each finished layer, written after its weights
.OUT.exporting/values-N.npz     what the next layer reads, after N lines
.OUT.exporting/folder/          becomes OUT
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.errors import EdgeError, GateError, InputError, OutputExistsError
from fusar_edge.export.lean.data_file import Entry
from fusar_edge.manifest import check_output

Values = dict[str, npt.NDArray[Any]]


class Line(msgspec.Struct):
    """What a finished layer left."""

    name: str
    tensors: dict[str, dict[str, Entry]] = {}
    """Graph -> tensor -> where it is."""
    facts: dict[str, Any] = {}


class Unfinished:
    """The folder, held by one process at a time; made by `unfinished`."""

    def __init__(self, out: Path) -> None:
        self.root = out.with_name(f".{out.name}.exporting")
        self.folder = self.root / "folder"
        self.lines: list[Line] = []
        self.values: Values = {}

    def take_up(self, plan: dict[str, Any], force: bool) -> bool:
        """Begin, or go on where the same plan was stopped: True. OutputExistsError for the remains of another.

        Remains that are not whole (a file that was cut or removed by others) are begun anew.
        """
        path = self.root / "plan.json"
        wanted = msgspec.json.encode(plan, order="deterministic")
        found = path.read_bytes() if path.is_file() else None
        if found == wanted and self._read():
            return bool(self.lines)
        if found not in (None, wanted) and not force:
            raise OutputExistsError(
                f"{self.root} holds an unfinished export with other {_differing(found, plan)}: give the same arguments "
                "to go on with it, another --out, or --force to begin anew"
            )
        self.clear()
        self.folder.mkdir(parents=True)
        path.with_suffix(".tmp").write_bytes(wanted)
        path.with_suffix(".tmp").rename(path)
        return False

    def done(self, name: str) -> Line | None:
        return next((line for line in self.lines if line.name == name), None)

    def entries(self, graph: str) -> dict[str, Entry]:
        """Every tensor of a graph that is written."""
        return {name: entry for line in self.lines for name, entry in line.tensors.get(graph, {}).items()}

    def finish(self, line: Line, values: Values) -> None:
        """A layer is done: its weights are on the disk, and `values` are what the next one reads."""
        number = len(self.lines) + 1
        path = self._values(number)
        with open(path.with_suffix(".tmp"), "wb") as file:
            np.savez(file, allow_pickle=False, **values)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".tmp").rename(path)
        with open(self.root / "journal.jsonl", "ab") as journal:
            journal.write(msgspec.json.encode(line) + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._values(number - 1).unlink(missing_ok=True)
        self.lines.append(line)
        self.values = values

    def clear(self) -> None:
        """The plan first: without it nothing is gone on with."""
        self.lines, self.values = [], {}
        (self.root / "plan.json").unlink(missing_ok=True)
        for path in self.root.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self, out: Path, force: bool) -> None:
        """The folder becomes OUT, and the rest goes. OutputExistsError where OUT came to be meanwhile."""
        check_output(out, force)
        (self.root / "plan.json").unlink()
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        self.folder.rename(out)
        shutil.rmtree(self.root)

    def _values(self, number: int) -> Path:
        return self.root / f"values-{number}.npz"

    def _read(self) -> bool:
        """Lines that were written whole: a torn last line was never finished. False where what they tell of is gone."""
        path = self.root / "journal.jsonl"
        self.lines, whole = [], 0
        for raw in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
            try:
                line = msgspec.json.decode(raw, type=Line)
            except msgspec.MsgspecError:
                break
            if not raw.endswith(b"\n"):
                break
            self.lines.append(line)
            whole += len(raw)
        if not self.folder.is_dir() or not all(
            map(self._holds, {name for line in self.lines for name in line.tensors})
        ):
            return False
        if self.lines:
            try:
                with np.load(self._values(len(self.lines))) as stored:
                    self.values = dict(stored)
            except (OSError, ValueError, BadZipFile):
                return False
        if path.is_file() and path.stat().st_size > whole:
            os.truncate(path, whole)
        return True

    def _holds(self, graph: str) -> bool:
        """The data file is as long as the tensors in it need."""
        path = self.folder / f"{graph}.data"
        ends = [entry.offset + entry.length for entry in self.entries(graph).values()]
        return path.is_file() and path.stat().st_size >= max(ends, default=0)


def _differing(begun: bytes | None, plan: dict[str, Any]) -> str:
    try:
        other = msgspec.json.decode(begun or b"{}")
    except msgspec.MsgspecError:
        return "settings"
    return ", ".join(n for n in plan if other.get(n) != msgspec.to_builtins(plan[n])) or "settings"


@contextmanager
def unfinished(out: Path) -> Iterator[Unfinished]:
    """Hold the folder beside `out`. OutputExistsError where another process holds it.

    After an error that would come again, and where no layer is done, nothing is left.
    """
    found = Unfinished(out)
    found.root.mkdir(parents=True, exist_ok=True)
    with open(found.root / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputExistsError(
                f"{out} is being exported by another process ({found.root} is locked): wait for it, or give "
                "another --out"
            ) from None
        try:
            yield found
        except EdgeError as problem:
            # What is refused is refused again: nothing to go on with.
            if isinstance(problem, GateError) or not found.lines:
                shutil.rmtree(found.root)
            raise
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{found.root} cannot be written ({problem.strerror}): make room and give the same command again; "
                f"{len(found.lines)} layers are done"
            ) from None


def flattened(groups: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> Values:
    """{group: {name: value}} -> {group/name: value}: names of values hold no `|`."""
    return {f"{group}|{name}": value for group, values in groups.items() for name, value in values.items()}


def grouped(values: Values) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for key, value in values.items():
        group, _, name = key.rpartition("|")
        found.setdefault(group, {})[name] = value
    return found

"""A table while it is built: a hidden folder beside it, from which a build that was stopped goes on.

.TABLE.building/plan.json     what is being built; another plan does not go on from here
.TABLE.building/done.jsonl    a line for each finished shard, written after the shard
.TABLE.building/table/        becomes TABLE when all of it is there
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fusar_edge.errors import AnchorError
from fusar_edge.manifest import check_output, output_file, sha256_file

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class Shard(NamedTuple):
    """A finished shard."""

    file: str
    """Path below the table."""
    sha256: str
    valid: int
    """Cells with a vector."""


class Unfinished:
    """The folder, held by one process at a time."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.building")
        self.table = self.folder / "table"
        self.done: dict[str, list[Shard]] = {}
        """Piece of work -> its shards."""

    def take_up(self, plan: dict[str, Any], force: bool) -> bool:
        """Begin, or go on where the same plan was stopped: True. Shards that are not as they were written are dropped.

        AnchorError for the remains of another plan, which `force` discards.
        """
        plan = json.loads(json.dumps(plan))
        begun = self._read(self.folder / "plan.json")
        if begun == plan and self.table.is_dir():
            self._read_done()
            self._drop_unknown_shards()
            return True
        if begun is not None and self.has_shards() and not force:
            differs = [name for name in plan if begun.get(name) != plan[name]] or ["its format"]
            raise AnchorError(
                f"{self.folder} holds an unfinished build with other {', '.join(differs)}: give the same options to go "
                f"on with it, or --force to begin anew"
            )
        self._empty()
        (self.folder / "plan.json").write_text(json.dumps(plan))
        return False

    def add(self, piece: str, shards: list[Shard]) -> None:
        """Write down that a piece of work is finished. The line is on disk when this returns."""
        with open(self.folder / "done.jsonl", "a", encoding="utf-8") as file:
            file.write(_line(piece, shards))
        self.done[piece] = shards

    def publish(self) -> None:
        """`table/` becomes the output."""
        if self.out.exists():
            shutil.rmtree(self.out) if self.out.is_dir() else self.out.unlink()
        self.table.rename(self.out)
        shutil.rmtree(self.folder)

    def has_shards(self) -> bool:
        """True where stopping lost no more than what was being written."""
        return any(shards for _, shards in self._journal())

    def _read_done(self) -> None:
        for piece, shards in self._journal():
            files = [self.table / shard.file for shard in shards]
            if all(f.is_file() and sha256_file(f) == s.sha256 for f, s in zip(files, shards, strict=True)):
                self.done[piece] = shards
        with output_file(self.folder / "done.jsonl", force=True) as path:
            path.write_text("".join(_line(piece, shards) for piece, shards in self.done.items()), encoding="utf-8")

    def _drop_unknown_shards(self) -> None:
        """Half-written ones, and the temporary files of what was writing when the build was stopped."""
        known = {shard.file for shards in self.done.values() for shard in shards}
        for path in self.table.rglob("codes/c/**/*"):
            if path.is_file() and path.relative_to(self.table).as_posix() not in known:
                path.unlink()

    def _journal(self) -> list[tuple[str, list[Shard]]]:
        path = self.folder / "done.jsonl"
        entries = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                piece, shards = json.loads(line)
            except ValueError:  # the line during which the build was stopped
                continue
            entries.append((piece, [Shard(*shard) for shard in shards]))
        return entries

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _empty(self) -> None:
        """Remove all but the lock."""
        shutil.rmtree(self.table, ignore_errors=True)
        for name in ("plan.json", "done.jsonl"):
            (self.folder / name).unlink(missing_ok=True)


@contextmanager
def unfinished_table(out: Path, *, force: bool) -> Iterator[Unfinished]:
    """The folder of a table being built. After an error it stays where a shard is finished, and vanishes otherwise.

    OutputExistsError where `out` is there and not `force`; AnchorError while another process builds the same table, and
    in place of a disk's OSError inside the block.
    """
    check_output(out, force)
    unfinished = Unfinished(out)
    unfinished.folder.mkdir(parents=True, exist_ok=True)
    with open(unfinished.folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AnchorError(f"{out} is being built by another process ({unfinished.folder} is locked)") from None
        try:
            yield unfinished
        except BaseException as problem:
            if not unfinished.has_shards():
                shutil.rmtree(unfinished.folder, ignore_errors=True)
            if isinstance(problem, OSError) and problem.errno in _DISK:
                raise cannot_be_written(unfinished.table, problem) from None
            raise


def cannot_be_written(table: Path, problem: OSError) -> AnchorError:
    return AnchorError(
        f"{table}: cannot be written ({problem}); make room and give the same command again: finished shards are kept"
    )


def _line(piece: str, shards: list[Shard]) -> str:
    return json.dumps([piece, shards]) + "\n"

"""The SQLite file: many readers, one writer, and what the disk's errors mean.

WAL with synchronous=FULL: what was committed is there after kill -9 and after a power cut (sqlite.org/wal.html).
A write that finds no room is rolled back and raises BusyError; the caller waits and writes again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusar_edge.errors import BusyError, EdgeError
from fusar_edge.service.journal.tables import SCRIPTS, VERSION, statements

log = logging.getLogger(__name__)

LOCK_WAIT_S = 10.0
"""So long a write waits for another process, such as `fusar-edge downlink`."""
RETRY_S = 5.0
WAL_LIMIT_BYTES = 16 << 20
"""The log file is cut back to this after a burst."""
IDLE_READERS = 8

_WAITING = {
    "SQLITE_FULL": "no space is left on the disk",
    "SQLITE_READONLY": "the disk or the file is read-only",
    "SQLITE_IOERR": "the disk does not take or give data",
    "SQLITE_CANTOPEN": "its files cannot be opened",
    "SQLITE_BUSY": "another process holds it",
    "SQLITE_LOCKED": "another process holds it",
}


class Database:
    """Connections to one journal file; safe between threads."""

    def __init__(self, path: Path) -> None:
        """EdgeError naming the file where it is damaged, of a newer version, or cannot be written."""
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.RLock()
        """Of the writer."""
        self._pool = threading.Lock()
        self._closed = False
        self._listeners: list[Callable[[], None]] = []
        self._noted = False
        """The transaction that is open has written an event."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connected()
        except (OSError, sqlite3.Error) as problem:
            raise self._unusable(problem) from None
        try:
            self._prepare()
        except sqlite3.Error as problem:
            self._writer.close()
            raise self._unusable(problem) from None
        except BaseException:
            self._writer.close()
            raise

    def read(self, sql: str, args: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of one SELECT, as of one moment."""
        with self._errors(), self._reader() as connection:
            return connection.execute(sql, args).fetchall()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Cursor]:
        """A cursor inside one transaction: all of it is on the disk afterwards, or nothing and an error.

        BusyError where the disk is full or read-only. Not to be nested.
        """
        with self._lock:
            self._check_open()
            assert not self._writer.in_transaction, "a transaction within a transaction"
            self._noted = False
            with self._errors():
                cursor = self._writer.cursor()
                try:
                    cursor.execute("BEGIN IMMEDIATE")
                    yield cursor
                    cursor.execute("COMMIT")
                except BaseException:
                    self._undo()
                    raise
                finally:
                    cursor.close()
            noted = self._noted
        if noted:
            self._tell()

    def add_tables(self, sql: str) -> None:
        """Run a script of CREATE ... IF NOT EXISTS statements in one transaction: tables of another part."""
        with self.write() as cursor:
            for statement in statements(sql):
                cursor.execute(statement)

    def on_event(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each commit that wrote an event, from the thread that wrote. Returns how to end it."""
        with self._pool:
            self._listeners.append(callback)

        def unsubscribe() -> None:
            with self._pool, contextlib.suppress(ValueError):
                self._listeners.remove(callback)

        return unsubscribe

    def checkpoint(self) -> None:
        """Bring what the log file holds into the main file, as far as no reader needs it."""
        with self._lock, self._errors():
            self._check_open()
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Reading and writing raise EdgeError afterwards. Twice is fine."""
        with self._lock, self._pool:
            self._closed = True
            for connection in (*self._idle, self._writer):
                connection.close()
            self._idle.clear()

    def _prepare(self) -> None:
        """Check the file, then bring its tables to this version."""
        if self._writer.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise EdgeError(f"{self.path}: the file system does not allow SQLite's WAL; give a local --data-dir")
        held = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if held > VERSION:
            raise EdgeError(
                f"{self.path} was written by a newer fusar-edge (version {held} of its tables, this one reads "
                f"{VERSION}): install that one, or give another --data-dir"
            )
        damage = self._writer.execute("PRAGMA quick_check(1)").fetchone()[0]  # 0.3 s for 300 MB
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        if held < VERSION:
            self._migrate(held)

    def _unusable(self, problem: Exception) -> EdgeError:
        """Of a file that is no database SQLite says so; of one that it cannot open or write, an OperationalError."""
        why = " ".join(str(problem).split())
        if isinstance(problem, (OSError, sqlite3.OperationalError)):
            return EdgeError(
                f"{self.path}: the journal cannot be opened ({why}); give a --data-dir that can be written"
            )
        return EdgeError(
            f"{self.path}: the journal is damaged ({why}); put back a copy, or move it away to begin a new one"
        )

    def _migrate(self, held: int) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for script in SCRIPTS[held:]:
                for statement in statements(script):
                    self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version={VERSION}")
            self._writer.execute("COMMIT")
        except BaseException:
            self._undo()
            raise

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        size = f"journal_size_limit={WAL_LIMIT_BYTES}"
        try:
            for setting in ("synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", size):
                connection.execute(f"PRAGMA {setting}").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, so that reading waits for no writer."""
        with self._pool:
            self._check_open()
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connected()
        try:
            yield connection
        finally:
            with self._pool:
                keep = not self._closed and len(self._idle) < IDLE_READERS
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EdgeError("the journal is closed: the service is stopping")

    def _undo(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _tell(self) -> None:
        with self._pool:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener()
            except Exception:
                log.exception("a listener of the journal failed")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours. Messages may reach a client: no path in those that pass."""
        try:
            yield
        except sqlite3.OperationalError as problem:
            code = str(getattr(problem, "sqlite_errorname", "")).split("_")
            if why := _WAITING.get("_".join(code[:2])):
                raise BusyError(
                    f"the journal cannot be used now, {why}: the service goes on by itself when this has ended", RETRY_S
                ) from problem
            raise
        except sqlite3.DatabaseError as problem:
            if getattr(problem, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise EdgeError(f"{self.path} is damaged ({problem}): stop the service and put back a copy") from None
            self._check_open()
            raise


def bytes_from_path(path: Path) -> bytes:
    """File names need not be UTF-8; SQLite's text must."""
    return os.fsencode(path)


def path_from_bytes(data: bytes) -> Path:
    return Path(os.fsdecode(data))


def plain(text: str) -> str:
    """Text that SQLite and JSON can hold: what is not Unicode becomes "?"."""
    return text.encode(errors="replace").decode()


def held_integer(value: int) -> int:
    """The nearest integer that SQLite holds, 64 bits: clients ask for what comes after any number."""
    return max(-(2**63), min(value, 2**63 - 1))

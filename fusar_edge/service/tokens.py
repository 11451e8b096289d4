"""Bearer tokens: made and revoked on the command line, known to the service by their SHA-256 alone.

A token is 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess, and no password to protect.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from fusar_edge.errors import InputError
from fusar_edge.manifest import output_file

Scope = Literal["submit", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""submit: give scenes and questions; read: see what is known; admin: both, and retry what failed."""
ALL: frozenset[Scope] = frozenset(SCOPES)
PREFIX = "fe_"
"""So that a token is known for one where it turns up in a log or a repository."""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a token."""

    id: str
    """For people, to revoke it by."""
    name: str
    """Who has it."""
    scopes: tuple[Scope, ...]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created_at: float
    """Unix seconds."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Token, ...] = ()
    version: Literal[1] = 1


class Tokens:
    """The file `tokens.json` (mode 0600). A change by another process holds from the next question on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._known: tuple[Token, ...] = ()

    def create(self, name: str, scopes: Sequence[str], now: float | None = None) -> tuple[str, Token]:
        """Make a token; its text is returned here and never again."""
        if not name.strip() or not name.isprintable() or len(name) > 100:
            raise InputError(f"{name!r} cannot name a token: give 1 to 100 printable characters that say who has it")
        wrong = sorted(set(scopes) - ALL)
        if wrong or not scopes:
            raise InputError(f"{', '.join(wrong) or 'no scope'} given; a token has one or more of: {', '.join(SCOPES)}")
        text = PREFIX + secrets.token_urlsafe(32)
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        at = time.time() if now is None else now
        token = Token(secrets.token_hex(4), name, ordered, _digest(text), at)
        with self._changing():
            self._write((*self._read(), token))
        return text, token

    def list(self) -> tuple[Token, ...]:
        """All that are valid, oldest first. InputError where the file cannot be read, or others may read it."""
        with self._lock:
            return self._current()

    def revoke(self, token_id: str) -> Token:
        """The token with this id is not valid any more; InputError where there is none."""
        with self._changing():
            known = self._read()
            gone = [token for token in known if token.id == token_id]
            if not gone:
                ids = ", ".join(token.id for token in known) or "none"
                raise InputError(f"no token has the id {token_id!r}; the ids are: {ids}")
            self._write(tuple(token for token in known if token.id != token_id))
        return gone[0]

    def scopes_of(self, text: str) -> frozenset[Scope] | None:
        """What a token allows, `admin` being all of it; None where it is not valid. As slow for either."""
        digest, found = _digest(text), None
        for token in self.list():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            return None
        return ALL if "admin" in found.scopes else frozenset(found.scopes)

    def _current(self) -> tuple[Token, ...]:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return ()
        except OSError as problem:
            raise InputError(f"{self.path}: cannot be read ({problem.strerror})") from None
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen != self._seen:
            self._known = self._read()
            self._seen = seen
        return self._known

    def _read(self) -> tuple[Token, ...]:
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise InputError(f"{self.path} can be read by others than its owner: chmod 600 {self.path}")
                return msgspec.json.decode(file.read(), type=_File).tokens
        except FileNotFoundError:
            return ()
        except OSError as problem:
            raise InputError(f"{self.path}: cannot be read ({problem.strerror})") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise InputError(f"{self.path}: {problem}; restore it, or delete it and make all tokens anew") from None

    def _write(self, tokens: tuple[Token, ...]) -> None:
        with output_file(self.path, force=True) as work:
            work.touch(mode=0o600)
            data = msgspec.json.format(msgspec.json.encode(_File(tokens)), indent=2) + b"\n"
            with open(work, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, by whichever process: a revocation is never undone by one made beside it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""One service at a time on a data folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusar_edge.errors import InputError


@contextmanager
def only_service(data_dir: Path) -> Iterator[None]:
    """Hold DATA_DIR/lock; the kernel lets go of it however the process ends. InputError where another holds it."""
    path = data_dir / "lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as problem:
        raise InputError(
            f"{path}: cannot be opened ({problem.strerror}); give a --data-dir that can be written"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise InputError(
                f"{data_dir} is used by another service (process {file.read().strip() or 'unknown'}): stop that one, "
                "or give another --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield

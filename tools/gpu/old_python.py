"""Lends Python 3.10, the one that TensorRT 8.6.0 has a wheel for, the names of 3.11 that the device side uses.

fusar-edge itself needs Python 3.11; this is for measurements alone. Import it before fusar_edge.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import sys
import typing
from typing import Any


def _file_digest(file: Any, name: str) -> Any:
    digest = hashlib.new(name)
    while data := file.read(1 << 20):
        digest.update(data)
    return digest


class _StrEnum(str, enum.Enum):  # noqa: UP042  there is no other in 3.10
    pass


if sys.version_info < (3, 11):  # noqa: UP036  what this file is for
    import tomli
    import typing_extensions

    hashlib.file_digest = _file_digest
    typing.Self = typing_extensions.Self
    datetime.UTC = datetime.timezone.utc  # noqa: UP017
    enum.StrEnum = _StrEnum
    sys.modules.setdefault("tomllib", tomli)

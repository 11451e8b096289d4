"""python killed_export.py CHECKPOINT RECIPE DATA OUT COUNT: export to INT8, and die by SIGKILL at the COUNT-th write.

A write is a tensor in the data file, the values for the next layer, or a line of the journal. COUNT 0: live.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusar_edge.export.lean import unfinished
from fusar_edge.export.lean.data_file import DataFile
from fusar_edge.export.run import export_model

written = 0


def deadly(function: Callable[..., Any], last: int) -> Callable[..., Any]:
    def write(*arguments: Any, **named: Any) -> Any:
        global written
        written += 1
        if written == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return write


def main(checkpoint: str, recipe: str, data: str, out: str, count: str) -> None:
    if int(count):
        DataFile.put = deadly(DataFile.put, int(count))  # type: ignore[method-assign]
        np.savez = deadly(np.savez, int(count))  # type: ignore[assignment]
        unfinished.msgspec.json.encode = deadly(unfinished.msgspec.json.encode, int(count))  # type: ignore[assignment]
    export_model("fusar-tiny", checkpoint, Path(out), int8=recipe, data=[Path(data)])


if __name__ == "__main__":
    main(*sys.argv[1:])

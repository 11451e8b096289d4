"""What a part of the session has found so far: OUT/PART.json, whole after every entry, so that a time-out loses one."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Entries of one part, added to those of an earlier process.

    An entry is a dict of figures, or {"error": ...} with the end of the traceback.
    """

    def __init__(self, part: str, out: Path, **facts: Any) -> None:
        self.path = out / f"{part}.json"
        python = platform.python_version()
        self.content: dict[str, Any] = {"part": part, "facts": {"python": python, **facts}, "entries": {}}
        if self.path.is_file():
            self.content["entries"] = json.loads(self.path.read_text())["entries"]
        out.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        work = self.path.with_suffix(".part")
        work.write_text(json.dumps(self.content, indent=1, default=float) + "\n")
        os.replace(work, self.path)

    def put(self, name: str, **figures: Any) -> None:
        """Add figures to an entry."""
        self.content["entries"].setdefault(name, {}).update(figures)
        self.write()

    def run(self, name: str, make: Callable[[], dict[str, Any]]) -> bool:
        """Put what `make` returns, or its error: the next entry is tried all the same. Whether there was no error."""
        start = time.perf_counter()
        try:
            figures = make()
        except Exception as problem:
            figures = {"error": f"{type(problem).__name__}: {problem}", "at": traceback.format_exc()[-1500:]}
        self.put(name, **figures, seconds=round(time.perf_counter() - start, 2))
        print(f"{name}: {figures.get('error', 'done')} ({time.perf_counter() - start:.1f} s)", flush=True)
        return "error" not in figures

"""TensorRT's timing cache: which kernel was fastest for each layer, kept so that a second build takes less time.

A cache holds for one GPU, one TensorRT and one graph; each combination has a file of its own. A file that TensorRT
refuses is as good as none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusar_edge.manifest import output_file, sha256_text
from fusar_edge.runtime.trt_api import DeviceFacts, checked


@dataclass(frozen=True)
class TimingCache:
    """One file, and whether it held anything that TensorRT took."""

    path: Path

    @contextmanager
    def attached(self, config: Any) -> Iterator[bool]:
        """Give the cache to a builder configuration; write it back where the block ends without an error.

        Yields whether timings of an earlier build are used.
        """
        stored = self.path.read_bytes() if self.path.is_file() else b""
        warm = bool(stored) and self._set(config, stored)
        if not warm:
            self._set(config, b"")
        yield warm
        filled = config.get_timing_cache()
        data = None if filled is None else filled.serialize()
        if data is not None:
            with output_file(self.path, force=True) as work:
                work.write_bytes(data)

    @staticmethod
    def _set(config: Any, stored: bytes) -> bool:
        cache = config.create_timing_cache(stored)
        if cache is None and stored:
            return False  # damaged, or of another TensorRT
        return bool(config.set_timing_cache(checked(cache, "a timing cache"), False))


def timing_cache(folder: Path, facts: DeviceFacts, version: str, graph_sha256: str) -> TimingCache:
    """The cache in `folder` of one (GPU, compute capability, TensorRT, graph)."""
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", facts.name).strip("-").lower() or "gpu"
    key = sha256_text("\n".join((facts.name, facts.compute_capability, version, graph_sha256)))[:12]
    return TimingCache(folder / f"{gpu}-sm{facts.compute_capability}-trt{version}-{key}.timing")


def default_folder() -> Path:
    """`fusar-edge/timing` in the user's cache folder, as the XDG base directories say."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fusar-edge" / "timing"

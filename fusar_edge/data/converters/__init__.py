"""Real data sets -> triplet manifests: `convert(kind, src, out)`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from fusar_edge.errors import DataError
from fusar_edge.manifest import Manifest, check_output, folder_hashes, output_folder, write_manifest

Progress = Callable[[int, int], None]
"""Called with (done, total) while a data set is read."""

_MODULES = {"ssdd": "fusar_edge.data.converters.ssdd", "mstar": "fusar_edge.data.converters.mstar"}

CONVERTERS = tuple(_MODULES)
"""Names of the data sets that can be converted."""


def convert(kind: str, src: Path, out: Path, *, force: bool = False, progress: Progress | None = None) -> Manifest:
    """Convert the data set in the folder `src` to the new folder `out`; returns the manifest written there.

    `out` is self-contained: `images/` (copies), `train.jsonl`, `val.jsonl` and `manifest.json`. The splits are made by
    a fixed rule, so that two machines with the same data agree on them. DataError names the file that cannot be used;
    then `out` does not appear.
    """
    if kind not in _MODULES:
        raise DataError(f"no converter for {kind!r}; there are: {', '.join(CONVERTERS)}")
    src = Path(src)
    if not src.is_dir():
        raise DataError(f"{src} is not a folder: give the folder of the {kind} data set")
    check_output(Path(out), force)
    write = cast("Callable[[Path, Path, Progress], Manifest]", importlib.import_module(_MODULES[kind]).write_converted)
    with output_folder(Path(out), force=force) as work:
        manifest = write(src, work, progress or (lambda done, total: None))
        manifest.files = folder_hashes(work)
        write_manifest(work, manifest)
    return manifest

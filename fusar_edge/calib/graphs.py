"""A folder with vision.onnx, decoder.onnx and tokenizer.json, opened the way the device opens a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.errors import InputError
from fusar_edge.manifest import FILENAME, Manifest, read_manifest
from fusar_edge.runtime.bundle import DECODER, TOKENIZER, VISION, Bundle, BundleSettings, Prompts
from fusar_edge.sar.radiometry import DEFAULT_RADIOMETRY, Radiometry

LISTING, SMOOTHING_LISTING = "calibration.jsonl", "smoothing.jsonl"
"""Tiles that `calibrate` and `export --smooth` chose (fusar_edge.calib.tiles.choice), in the folders that they make."""
WORKSHOP_FILES = ("sensitivity.json", "sensitivity.html")
"""What `calibrate --search` tells people; no bundle holds it."""
STAGES = {"export": "fp32", "calibrate": "int8"}
"""Stage that made the folder -> precision of its graphs."""


@dataclass(frozen=True)
class GraphFolder:
    """What `export` and `calibrate` make."""

    path: Path
    manifest: Manifest
    settings: BundleSettings
    radiometry: Radiometry

    @property
    def precision(self) -> str:
        return STAGES[self.manifest.stage]

    def bundle(self, folder: Path | None = None) -> Bundle:
        """The graphs (or those of another folder with the same settings) as the runtime's backends take them."""
        return Bundle(folder or self.path, self.settings, Prompts(), self.radiometry, self.manifest, sha256="")


def open_graphs(path: Path, stages: tuple[str, ...] = tuple(STAGES)) -> GraphFolder:
    """Read the manifest and check that the folder is whole; raises InputError naming what is missing."""
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.stage not in stages:
        raise InputError(f"{path} was made by stage {manifest.stage!r}; give a folder made by: {', '.join(stages)}")
    for name in (VISION, DECODER, TOKENIZER):
        if not (path / name).is_file():
            raise InputError(f"{path / name} is missing: the folder is incomplete; make it again")
    known = {field.name for field in msgspec.structs.fields(BundleSettings)}
    chosen = {key: value for key, value in manifest.settings.items() if key in known}
    try:
        settings = msgspec.convert(chosen | {"precision": STAGES[manifest.stage]}, BundleSettings)
        radiometry = msgspec.convert(_radiometry(manifest), Radiometry)
    except msgspec.ValidationError as problem:
        raise InputError(f"{path / FILENAME}: settings: {problem}; make the folder again") from None
    return GraphFolder(path, manifest, settings, radiometry)


def _radiometry(manifest: Manifest) -> Any:
    return manifest.settings.get("radiometry", msgspec.to_builtins(DEFAULT_RADIOMETRY))

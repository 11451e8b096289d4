"""adapters/ of an export that is written layer by layer: places are known before the first layer is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fusar_edge.export.adapters import layout, record_of, save_folds
from fusar_edge.model.adapted import Branch
from fusar_edge.runtime.adapters import Placed, data_name, write_record


@dataclass(frozen=True)
class AdapterFile:
    """The branch's own files in `folder`."""

    folder: Path
    branch: Branch
    hashes: Mapping[str, str]
    """Of the checkpoint's files."""
    recipe: str

    @property
    def places(self) -> dict[str, Placed]:
        return layout(self.branch.weights.config, self.branch.rank)

    @property
    def bytes(self) -> int:
        return max(placed.end for placed in self.places.values())

    def begun(self) -> dict[str, Placed]:
        """The file in its full length, for the layers to write into; what a killed run wrote stays."""
        path = self.folder / data_name(self.branch.name)
        path.parent.mkdir(exist_ok=True)
        with open(path, "ab") as file:
            file.truncate(self.bytes)
        return self.places

    def finished(self, folds: Mapping[str, npt.NDArray[Any]]) -> None:
        """The record, and SmoothQuant's factors."""
        write_record(self.folder, record_of(self.branch, self.places, self.hashes, self.recipe))
        save_folds(self.folder, folds)

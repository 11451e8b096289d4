"""A graph while its layers are written, and how it becomes INT8."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from fusar_edge.calib.qdq import Linear
from fusar_edge.export.lean.data_file import DataFile
from fusar_edge.export.lean.parts import AFTER, Part
from fusar_edge.export.lean.questions import Asked
from fusar_edge.specs import CalibRecipe


@dataclass
class Graph:
    """One of the two graphs while its layers are written."""

    name: str
    skeleton: onnx.ModelProto
    linears: list[Linear]
    """Those that become INT8 if they can."""
    parts: dict[str, Part]
    types: dict[str, int]
    data: DataFile
    half: list[str] = field(default_factory=list)
    """Embeddings that are stored in FP16."""

    def needed_after(self, name: str) -> set[str]:
        """Values that parts behind `name` read."""
        names = list(self.parts)
        return {v for later in names[names.index(name) + 1 :] if later != AFTER for v in self.parts[later].inputs}


@dataclass(frozen=True)
class Int8:
    """How a graph becomes INT8."""

    recipe: CalibRecipe
    kept: dict[str, str]
    """Layer -> why the recipe keeps it in float."""
    tiles: list[Asked]
    """Samples that ranges are taken from."""
    held_out: list[Asked]

    @property
    def anchored(self) -> bool:
        return any(len(asked.feeds) > 1 for asked in self.tiles)

"""An intake and what it talks to, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusar_edge.service.intake.intake import Intake
from fusar_edge.service.journal import Journal
from fusar_edge.service.settings import LimitSettings

LIMITS = LimitSettings(free_disk_mib=1, queued_scenes=3)


@dataclass
class Station:
    """An intake and what it talks to."""

    intake: Intake
    journal: Journal
    wakes: list[None]

    @property
    def left(self) -> list[Path]:
        """Files below incoming and scenes."""
        return [p for folder in (self.intake.incoming, self.intake.scenes) for p in folder.rglob("*")]

    def upload(self, data: bytes) -> Path:
        path = self.intake.incoming / "up.part"
        path.write_bytes(data)
        return path


Open = Callable[..., Station]

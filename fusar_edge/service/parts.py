"""What a running service is made of; every HTTP router takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fusar_edge.service.settings import ServiceSettings
from fusar_edge.service.tokens import Tokens

if TYPE_CHECKING:
    from fusar_edge.runtime.bundle import Bundle
    from fusar_edge.service.http.metrics import Metrics
    from fusar_edge.service.intake.intake import Intake
    from fusar_edge.service.intake.watch import Watcher
    from fusar_edge.service.journal import Journal
    from fusar_edge.service.pipeline import Pipeline
    from fusar_edge.service.sinks.courier import Courier


@dataclass
class ServiceParts:
    """All made and started by the caller, and stopped by the caller after the server has ended."""

    settings: ServiceSettings
    bundle: Bundle
    journal: Journal
    pipeline: Pipeline
    intake: Intake
    metrics: Metrics
    """Made first: the pipeline is given its `observe`."""
    couriers: list[Courier] = field(default_factory=list)
    """One for each sink, once it is started."""
    watcher: Watcher | None = None
    """Once it is started."""
    tokens: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.settings.data_dir / "tokens.json")

    @property
    def incoming(self) -> Path:
        """Folder of uploads on their way."""
        return self.settings.data_dir / "incoming"

    def results(self, scene_id: str) -> Path:
        """Folder that the file sink writes a scene's results to."""
        return self.settings.data_dir / "results" / scene_id

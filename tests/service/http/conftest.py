"""Parts of a service without engines, its application, and a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_parts import make_parts, settings_for

from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.intake.probe import Prober


@pytest.fixture
def parts_with(bundle: Bundle, prober: Prober, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`parts_with(http=HttpSettings(...))`: parts with these settings."""
    made: list[Any] = []

    def make(**changes: Any) -> Any:
        made.append(make_parts(bundle, settings_for(tmp_path / str(len(made)), **changes), prober))
        return made[-1]

    yield make
    for parts in made:
        parts.journal.close()


@pytest.fixture
def parts(parts_with: Callable[..., Any]) -> Any:
    return parts_with()

"""Requests that schemathesis makes of the OpenAPI document: every answer is a documented one, none is a 5xx."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from served_app import served
from service_parts import accepted, make_parts, settings_for

from fusar_edge.errors import BusyError
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.service.http.app import make_app
from fusar_edge.service.intake.probe import Prober
from fusar_edge.service.journal import TileOutcome

schemathesis = pytest.importorskip("schemathesis")
FEW, MANY = 2, 100
UNCHECKED = ("positive_data_acceptance",)
"""A request may keep to the document and still hold no GeoTIFF: bytes have no schema."""
ENDLESS = "/v1/events"
"""A stream without an end is no answer to wait for; test_http_events has its parameters."""


@pytest.fixture(scope="module")
def api(bundle: Bundle, prober: Prober, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the OpenAPI document of a service with scenes in every state."""
    folder = tmp_path_factory.mktemp("api")
    chosen = settings_for(folder, profile="ground")
    parts = make_parts(bundle, chosen, prober)

    def busy(job: Any) -> None:
        raise BusyError("questions wait", 1.0)

    parts.pipeline.submit = busy
    rows = [accepted(parts, folder, seed=n) for n in range(3)]
    parts.journal.start(rows[0].id, {"width": 64, "height": 64}, 2)
    parts.journal.tile_done(rows[0].id, TileOutcome(1, "skipped", "nodata"))
    parts.journal.fail(rows[1].id, "broken", [])
    with served(make_app(parts), parts) as address:
        yield f"{address}/openapi.json"
    parts.journal.close()


def test_answers_to_a_few_requests_of_every_kind_are_as_documented(api: str) -> None:
    schema = schemathesis.openapi.from_url(api).exclude(path=ENDLESS)
    unchecked = [schemathesis.checks.CHECKS.get_one(name) for name in UNCHECKED]
    asked = 0
    for operation in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=FEW,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.ok().as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(excluded_checks=unchecked)

            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong in GET /healthz
                ask()
    assert asked > 40


@pytest.mark.slow
def test_answers_to_many_requests_are_as_documented(api: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", api, "--checks", "all", "--max-examples", str(MANY)]
    options = ["--exclude-checks", ",".join(UNCHECKED), "--exclude-path", ENDLESS]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

"""What can be asked about scenes, the state of the service, and errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from service_parts import accepted, ask

from fusar_edge.errors import BusyError, EdgeError
from fusar_edge.service.http.app import make_app
from fusar_edge.service.http.metrics import Metrics
from fusar_edge.service.http.problems import problem_from_error, without_paths
from fusar_edge.service.http.views import public_origin
from fusar_edge.service.journal import Message, TileOutcome
from fusar_edge.service.sinks.courier import SinkStatus


@pytest.fixture
def app(parts: Any) -> FastAPI:
    return make_app(parts)


def keys(value: Any) -> set[str]:
    """Names of all members of a JSON value, at any depth."""
    if isinstance(value, dict):
        return set(value) | {name for part in value.values() for name in keys(part)}
    return {name for part in value for name in keys(part)} if isinstance(value, list) else set()


def test_a_scene_is_shown_without_what_belongs_to_the_machine(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path, priority=5, label="tanker", submitted_as=str(tmp_path / "drop" / "a.tif"))
    answer = ask(app, "GET", f"/v1/scenes/{row.id}")
    assert answer.status_code == 200
    scene = answer.json()
    assert (scene["id"], scene["status"], scene["priority"], scene["label"]) == (row.id, "queued", 5, "tanker")
    assert scene["submitted_as"] == "a.tif"
    assert not {"path", "owned", "mtime_ns"} & keys(scene)
    assert str(tmp_path) not in answer.text


def test_scenes_are_listed_in_pages_newest_first(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    ids = [accepted(parts, tmp_path, seed=n).id for n in range(5)]
    found, before = [], None
    while True:
        query = {"limit": 2} | ({} if before is None else {"before": before})
        page = ask(app, "GET", "/v1/scenes", params=query).json()
        found += [scene["id"] for scene in page["scenes"]]
        before = page["next"]
        if before is None:
            break
    assert found == ids[::-1]


def test_scenes_are_listed_by_status(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    first, second = (accepted(parts, tmp_path, seed=n) for n in range(2))
    parts.journal.fail(first.id, "broken", [])
    for status, expected in (("failed", [first.id]), ("queued", [second.id]), ("done", [])):
        scenes = ask(app, "GET", "/v1/scenes", params={"status": status}).json()["scenes"]
        assert [scene["id"] for scene in scenes] == expected


def test_an_unknown_scene_is_not_found(app: FastAPI) -> None:
    ids = ("0123456789abcdef", "x", "%00", "%F0%9F%9A%A2", "%ED%A0%80", "..%2f..", "9" * 400)
    for path in (f"/v1/scenes/{scene_id}{end}" for scene_id in ids for end in ("", "/result.geojson", "/tiles")):
        answer = ask(app, "GET", path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 404


def test_finished_tiles_are_paged_by_index(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path)
    parts.journal.start(row.id, {"width": 64}, 9)
    for index in (7, 0, 3):
        parts.journal.tile_done(row.id, TileOutcome(index, "answered", features=[{"type": "Feature"}]))
    parts.journal.tile_done(row.id, TileOutcome(5, "skipped", "nodata"))
    first = ask(app, "GET", f"/v1/scenes/{row.id}/tiles", params={"limit": 3}).json()
    assert [tile["index"] for tile in first["tiles"]] == [0, 3, 5]
    assert first["tiles"][2]["reason"] == "nodata"
    rest = ask(app, "GET", f"/v1/scenes/{row.id}/tiles", params={"after": first["next"], "limit": 3}).json()
    assert [tile["index"] for tile in rest["tiles"]] == [7]
    assert rest["next"] is None


def test_a_result_is_there_from_the_first_moment(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path)
    answer = ask(app, "GET", f"/v1/scenes/{row.id}/result.geojson")
    assert answer.headers["content-type"] == "application/geo+json"
    assert answer.json()["type"] == "FeatureCollection"
    assert answer.json()["features"] == []


def test_a_finished_scene_is_answered_from_its_file(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path)
    folder = parts.results(row.id)
    folder.mkdir(parents=True)
    (folder / "result.geojson").write_text('{"type": "FeatureCollection", "features": [1]}')
    (folder / "item.json").write_text('{"type": "Feature"}')
    path = f"/v1/scenes/{row.id}"
    assert ask(app, "GET", f"{path}/result.geojson").json()["features"] == []  # of an earlier attempt
    refused = ask(app, "GET", f"{path}/item.json")
    assert refused.status_code == 409
    assert "is queued" in refused.json()["detail"]
    parts.journal.start(row.id, {"width": 64}, 0)
    parts.journal.finish(row.id, [])
    assert ask(app, "GET", f"{path}/result.geojson").json()["features"] == [1]
    assert ask(app, "GET", f"{path}/item.json").json() == {"type": "Feature"}


def test_a_failed_scene_tells_why_and_is_tried_again(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path)
    woken = parts.pipeline.woken
    assert ask(app, "POST", f"/v1/scenes/{row.id}/retry").status_code == 409
    parts.journal.fail(row.id, f"{tmp_path}/data/scenes/{row.id}/a.tif: truncated", [])
    (dead,) = ask(app, "GET", "/v1/dead-letters").json()["scenes"]
    assert (dead["id"], dead["reason"]) == (row.id, "a.tif: truncated")
    again = ask(app, "POST", f"/v1/scenes/{row.id}/retry")
    assert (again.status_code, again.json()["status"], again.json()["attempts"]) == (202, "queued", 2)
    assert parts.pipeline.woken == woken + 1
    assert ask(app, "GET", "/v1/dead-letters").json()["scenes"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/scenes?limit=0",
        "/v1/scenes?limit=501",
        "/v1/scenes?limit=99999999999999999999999999",
        "/v1/scenes?before=nan",
        "/v1/scenes?before=inf",
        "/v1/scenes?before=1e400",
        "/v1/scenes?status=gone",
        "/v1/scenes?status=%00",
        "/v1/events?after=-1",
        "/v1/events?after=9223372036854775808",
        "/v1/dead-letters?limit=%F0%9F%9A%A2",
    ],
)
def test_a_value_out_of_bounds_is_named_and_not_repeated(app: FastAPI, path: str) -> None:
    answer = ask(app, "GET", path)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    name = path.partition("?")[2].partition("=")[0]
    assert answer.json()["errors"][0]["where"] == f"query/{name}"
    assert "input" not in keys(answer.json())


def test_a_method_that_a_route_has_not_is_a_problem_too(app: FastAPI) -> None:
    answer = ask(app, "DELETE", "/v1/scenes")
    assert (answer.status_code, answer.json()["title"]) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_an_unforeseen_error_is_logged_and_not_told(
    app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise sqlite3.OperationalError("no such table: secrets in /data/journal.sqlite")

    monkeypatch.setattr(parts.journal, "scenes", broken)
    answer = ask(app, "GET", "/v1/scenes")
    assert answer.status_code == 500
    assert "secrets" not in answer.text
    assert answer.headers["content-security-policy"]
    assert "no such table" in caplog.text


def test_a_busy_journal_says_when_to_ask_again(app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any) -> None:
        raise BusyError("no space", 2.1)

    monkeypatch.setattr(parts.journal, "scenes", busy)
    answer = ask(app, "GET", "/v1/scenes")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(28, "No space left"), 507),
        (OSError(30, "Read-only"), 507),
        (OSError(5, "I/O"), 500),
        (EdgeError("x"), 503),
    ],
)
def test_errors_of_the_disk_have_their_own_status(error: Exception, status: int) -> None:
    assert problem_from_error(error).status_code == status


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/data/scenes/1f/a.tif: truncated", "a.tif: truncated"),
        ("cannot read '/data/x/a.tif' (gone)", "cannot read 'a.tif' (gone)"),
        ("send image/tiff, or ask https://host/a/b.tif", "send image/tiff, or ask https://host/a/b.tif"),
        ("GET /v1/scenes/x lists them", "GET /v1/scenes/x lists them"),
    ],
)
def test_messages_lose_folders_and_keep_names(text: str, public: str) -> None:
    assert without_paths(text) == public


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:secret@host:8443/a/b.tif?sig=abc#x", "https://host:8443/a/b.tif"),
        ("https://[2001:db8::1]/a.tif?k=1", "https://[2001:db8::1]/a.tif"),
        ("https://[", ""),
        ("/data/in/a.tif", "a.tif"),
        ("a.tif", "a.tif"),
    ],
)
def test_where_a_scene_came_from_is_told_without_secrets(given: str, shown: str) -> None:
    assert public_origin(given) == shown


def test_readiness_names_every_reason_against_it(app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(app, "GET", "/readyz").json() == {"status": "ready"}

    def damaged() -> int:
        raise EdgeError("/data/journal.sqlite is damaged")

    parts.pipeline.breaks("CUDA error in /opt/bundle/vision.plan")
    monkeypatch.setattr(parts.journal, "last_event", damaged)
    answer = ask(app, "GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["engine: CUDA error in vision.plan", "journal: journal.sqlite is damaged"]
    assert ask(app, "GET", "/healthz").status_code == 200


def test_a_full_disk_is_not_ready(parts_with: Callable[..., Any]) -> None:
    from fusar_edge.service.settings import LimitSettings

    answer = ask(make_app(parts_with(limits=LimitSettings(free_disk_mib=1 << 40))), "GET", "/readyz")
    assert answer.status_code == 503
    assert "MiB are free" in answer.json()["reasons"][0]


def test_the_status_is_one_look_at_everything(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    accepted(parts, tmp_path)
    for ms in range(1, 101):
        parts.metrics.observe("vision", float(ms))
    status = ask(app, "GET", "/v1/status").json()
    assert status["ready"] is True
    assert status["bundle"]["sha256"] == parts.bundle.sha256
    assert status["counts"]["scenes"]["queued"] == 1
    assert status["counts"]["outbox"] == {"files": 0}
    assert status["pipeline"]["working"] == [{"scene": "0123456789abcdef", "tile": 7}]
    assert status["pipeline"]["limits"] == {"tasks": None, "stride": 1, "paused": False, "reason": ""}
    assert status["latency_ms"]["vision"] == {"count": 100, "p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 100.0}
    assert status["last_event"] == 1


@dataclass
class Said:
    """A courier that only says how it is."""

    state: SinkStatus
    woken: int = 0

    def status(self) -> SinkStatus:
        return self.state

    def wake(self) -> None:
        self.woken += 1


def test_the_status_tells_which_sink_and_which_folder_is_in_trouble(app: FastAPI, parts: Any) -> None:
    said = ask(app, "GET", "/v1/status").json()
    assert (said["sinks"], said["watch"]) == ([], None)
    parts.couriers.append(Said(SinkStatus("files", 7, 3, "/data/results: no space is left")))
    parts.watcher = SimpleNamespace(accepted=4, refused=1, problem="64 scenes are waiting")
    said = ask(app, "GET", "/v1/status").json()
    sink = {"name": "files", "waiting": 0, "dead": 0, "sent": 7, "failures": 3, "problem": "results: no space is left"}
    assert said["sinks"] == [sink]
    assert said["watch"] == {"accepted": 4, "refused": 1, "problem": "64 scenes are waiting"}
    text = ask(app, "GET", "/metrics").text
    assert 'fusar_edge_sink_up{sink="files"} 0.0' in text
    assert "fusar_edge_watch_up 0.0" in text


def test_what_a_sink_has_refused_is_sent_again(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    row = accepted(parts, tmp_path)
    parts.journal.fail(row.id, "why", [Message("k", "failed", row.id, None, b"{}")])
    parts.journal.bury("files", "k", "400 from the hook")
    parts.couriers.append(courier := Said(SinkStatus("files", 0, 0, "")))
    assert parts.journal.outbox_count("files") == 0
    answer = ask(app, "POST", "/v1/sinks/files/retry")
    assert (answer.status_code, answer.json()) == (202, {"sink": "files", "messages": 1})
    assert (parts.journal.outbox_count("files"), courier.woken) == (1, 1)
    assert "there are: files" in ask(app, "POST", "/v1/sinks/mqtt/retry").json()["detail"]


def test_percentiles_forget_what_is_older_than_ten_minutes() -> None:
    now = [0.0]
    metrics = Metrics(lambda: now[0])
    metrics.observe("read", 1000.0)
    now[0] = 599.0
    metrics.observe("read", 10.0)
    assert metrics.percentiles()["read"]["count"] == 2
    now[0] = 601.0
    assert metrics.percentiles() == {"read": {"count": 1, "p50": 10.0, "p95": 10.0, "p99": 10.0, "max": 10.0}}
    now[0] = 2000.0
    assert metrics.percentiles() == {}


def test_prometheus_reads_every_figure(app: FastAPI, parts: Any, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    row = accepted(parts, tmp_path)
    parts.metrics.observe("decode", 250.0)
    ask(app, "GET", f"/v1/scenes/{row.id}")
    ask(app, "GET", "/v1/scenes/nowhere")
    ask(app, "BREW", "/v1/scenes/" + "x" * 50)
    answer = ask(app, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["fusar_edge_scenes", "queued"] == 1
    assert samples["fusar_edge_tiles_total", "answered"] == 0
    assert samples["fusar_edge_outbox_messages", "files"] == 0
    assert samples["fusar_edge_engine_up",] == 1
    assert samples["fusar_edge_journal_up",] == 1
    assert samples["fusar_edge_stage_seconds_sum", "decode"] == 0.25
    assert samples["fusar_edge_http_requests_total", "/v1/scenes/{scene_id}", "200", "GET"] == 1
    assert samples["fusar_edge_http_requests_total", "/v1/scenes/{scene_id}", "404", "GET"] == 1
    assert not any("x" * 50 in name for name in map(str, samples))


def test_metrics_are_told_while_the_journal_is_not_there(
    app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy() -> None:
        raise BusyError("no space", 1.0)

    monkeypatch.setattr(parts.journal, "counts", busy)
    answer = ask(app, "GET", "/metrics")
    assert "fusar_edge_journal_up 0.0" in answer.text


def test_the_openapi_document_names_every_status_of_the_gate(app: FastAPI) -> None:
    schema = ask(app, "GET", "/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert path in ("/healthz", "/readyz") or "400" in operation["responses"], path
            assert method == "get" or "403" in operation["responses"], path
            assert operation.get("summary")
    assert "HTTPValidationError" not in msgspec.json.encode(schema).decode() or "/v1/chat" in str(schema["paths"])

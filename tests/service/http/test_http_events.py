"""Server-Sent Events over a real socket: order, resumption, heartbeat, end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from served_app import served
from service_parts import accepted, ask

from fusar_edge.service.http import events
from fusar_edge.service.http.app import make_app
from fusar_edge.service.journal import TileOutcome
from fusar_edge.service.settings import HttpSettings


@pytest.fixture
def app(parts: Any) -> FastAPI:
    return make_app(parts)


@pytest.fixture
def client(app: FastAPI, parts: Any) -> Iterator[httpx.Client]:
    with served(app, parts) as address, httpx.Client(base_url=address, timeout=20) as made:
        yield made


class Reader:
    """Blocks of an event stream, as an EventSource cuts them."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        self._lines = answer.iter_lines()
        assert self.block() == {"retry": "2000"}

    def block(self) -> dict[str, str]:
        """Fields of the next block; a comment has the name ""."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                return fields
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        raise EOFError

    def event(self) -> dict[str, Any]:
        """Data of the next event; its id and kind stand in it as they do beside it."""
        fields = self.block()
        data: dict[str, Any] = json.loads(fields["data"])
        assert fields["event"] == data["kind"]
        assert fields["id"] == str(data["id"])
        return data


def test_a_stream_tells_what_happens_as_it_happens(client: httpx.Client, parts: Any, tmp_path: Path) -> None:
    before = accepted(parts, tmp_path, seed=1)
    with client.stream("GET", "/v1/events") as answer:
        reader = Reader(answer)
        row = accepted(parts, tmp_path, seed=2)
        first = reader.event()
        assert (first["kind"], first["scene"]) == ("scene.accepted", row.id)
        assert before.id != row.id
        parts.journal.start(row.id, {"width": 64}, 2)
        assert reader.event()["kind"] == "scene.started"
        feature = {"type": "Feature", "properties": {"task": "caption", "text": "A ship\nat /sea/port"}}
        parts.journal.tile_done(row.id, TileOutcome(1, "answered", features=[feature]))
        tile = reader.event()
        assert tile["data"]["tile"] == 1
        assert tile["data"]["answers"] == [{"task": "caption", "text": "A ship\nat /sea/port"}]


def test_a_stream_goes_on_after_the_last_event_seen(client: httpx.Client, parts: Any, tmp_path: Path) -> None:
    rows = [accepted(parts, tmp_path, seed=n) for n in range(3)]
    with client.stream("GET", "/v1/events", params={"after": 0}) as answer:
        reader = Reader(answer)
        told = [reader.event() for _ in rows]
    assert [event["scene"] for event in told] == [row.id for row in rows]
    last = {"Last-Event-ID": str(told[1]["id"])}  # wins: EventSource asks again with the query that it began with
    with client.stream("GET", "/v1/events", params={"after": 0}, headers=last) as answer:
        assert Reader(answer).event() == told[2]


def test_a_stream_of_one_scene_tells_of_no_other(client: httpx.Client, parts: Any, tmp_path: Path) -> None:
    first, second = (accepted(parts, tmp_path, seed=n) for n in range(2))
    parts.journal.fail(first.id, "broken", [])
    parts.journal.fail(second.id, f"{tmp_path}/a.tif: truncated", [])
    with client.stream("GET", "/v1/events", params={"after": 0, "scene": second.id}) as answer:
        reader = Reader(answer)
        assert [(event := reader.event())["kind"] for _ in range(2)] == ["scene.accepted", "scene.failed"]
        assert event["scene"] == second.id
        assert event["data"]["reason"] == "a.tif: truncated"


def test_more_events_than_one_batch_all_arrive_in_order(
    client: httpx.Client, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCH", 3)
    row = accepted(parts, tmp_path)
    parts.journal.start(row.id, {"width": 64}, 40)
    parts.journal.tiles_done(row.id, [TileOutcome(n, "skipped", "nodata") for n in range(20)])
    with client.stream("GET", "/v1/events", params={"after": 0}) as answer:
        reader = Reader(answer)
        early = [reader.event() for _ in range(10)]
        parts.journal.tiles_done(row.id, [TileOutcome(n, "skipped", "nodata") for n in range(20, 40)])
        late = [reader.event() for _ in range(32)]
    assert [event["id"] for event in early + late] == list(range(1, 43))


def test_events_that_are_not_kept_any_more_are_a_gap(client: httpx.Client, parts: Any, tmp_path: Path) -> None:
    for n in range(4):
        accepted(parts, tmp_path, seed=n)
    parts.journal.prune(keep_events=1, keep_done_days=1)
    with client.stream("GET", "/v1/events", params={"after": 1}) as answer:
        reader = Reader(answer)
        assert reader.block() == {"event": "gap", "data": '{"after": 1, "next": 4}'}
        assert reader.event()["id"] == 4
    with client.stream("GET", "/v1/events", params={"after": 3}) as answer:
        assert Reader(answer).event()["id"] == 4


def test_an_id_of_another_journal_is_a_gap(client: httpx.Client, parts: Any, tmp_path: Path) -> None:
    accepted(parts, tmp_path)
    with client.stream("GET", "/v1/events", headers={"Last-Event-ID": "9000"}) as answer:
        reader = Reader(answer)
        assert reader.block() == {"event": "gap", "data": '{"after": 9000, "next": 2}'}
        accepted(parts, tmp_path, seed=1)
        assert reader.event()["id"] == 2


def test_a_quiet_stream_is_kept_alive(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
    with client.stream("GET", "/v1/events") as answer:
        reader = Reader(answer)
        assert [reader.block(), reader.block()] == [{"": "alive"}, {"": "alive"}]


def test_streams_are_bounded_and_a_client_that_leaves_gives_its_place_back(
    client: httpx.Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = threading.Event()
    discard = events.Streams.discard

    def noticed(self: Any, listener: Any) -> None:
        discard(self, listener)
        freed.set()

    monkeypatch.setattr(events.Streams, "discard", noticed)
    with client.stream("GET", "/v1/events") as one, client.stream("GET", "/v1/events") as two:
        held = [Reader(one), Reader(two)]  # httpx closes a stream that nobody holds
        with client.stream("GET", "/v1/events") as three:
            held.append(Reader(three))
            refused = client.get("/v1/events")
            assert refused.status_code == 429
            assert "limits.event_streams" in refused.json()["detail"]
            freed.clear()
        assert freed.wait(20)
        with client.stream("GET", "/v1/events") as again:
            held.append(Reader(again))
            assert len(app.state.streams) == 3


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9223372036854775808", "٣", "1e3", " ", "9" * 5000])
def test_a_last_event_id_of_somebody_else_is_refused(app: FastAPI, given: str) -> None:
    answer = ask(app, "GET", "/v1/events", headers={"Last-Event-ID": given.encode()})
    assert answer.status_code == 400


def test_streams_end_when_the_server_stops(app: FastAPI, parts: Any) -> None:
    with httpx.Client(timeout=20) as client:
        with served(app, parts) as address:
            answer = client.send(client.build_request("GET", f"{address}/v1/events"), stream=True)
            reader = Reader(answer)
        with pytest.raises(EOFError):
            reader.block()
        answer.close()
    assert len(app.state.streams) == 0
    assert ask(app, "GET", "/v1/events").status_code == 503


def test_a_stream_ends_when_its_token_is_revoked(
    parts_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
    parts = parts_with(http=HttpSettings(port=0, require_token=True))
    text, token = parts.tokens.create("page", ["read"])
    headers = {"Authorization": f"Bearer {text}"}
    with served(make_app(parts), parts) as address, httpx.Client(base_url=address, timeout=20) as client:
        with client.stream("GET", "/v1/events", headers=headers) as answer:
            reader = Reader(answer)
            assert reader.block() == {"": "alive"}
            parts.tokens.revoke(token.id)
            with pytest.raises(EOFError):
                while True:
                    assert reader.block() == {"": "alive"}
        assert client.get("/v1/events", headers=headers).status_code == 401


def test_the_server_does_not_say_what_it_is_made_of(client: httpx.Client) -> None:
    assert "server" not in client.get("/healthz").headers

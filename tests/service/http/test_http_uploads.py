"""Scenes that are given over HTTP: what is taken, what is refused, and that nothing of the refused stays."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from served_app import served
from service_parts import accepted, ask, write_tiff

from fusar_edge.errors import BusyError
from fusar_edge.service.http import uploads
from fusar_edge.service.http.app import make_app
from fusar_edge.service.settings import LimitSettings, StacSettings

TIFF = {"Content-Type": "image/tiff"}
MIB = 1 << 20


@pytest.fixture
def app(parts: Any) -> FastAPI:
    return make_app(parts)


@pytest.fixture
def tiff(tmp_path: Path) -> bytes:
    return write_tiff(tmp_path / "scene.tif").read_bytes()


def left(parts: Any) -> list[str]:
    """Files that uploads left on their way."""
    return [path.name for path in parts.incoming.iterdir()]


def form(body: bytes, boundary: str = "x") -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def test_a_body_is_accepted_once_and_known_ever_after(app: FastAPI, parts: Any, tiff: bytes) -> None:
    query = {"name": "harbour.tif", "tasks": ["caption", "detect"], "label": "tanker", "priority": 7}
    first = ask(app, "POST", "/v1/scenes", content=tiff, headers=TIFF, params=query)
    assert first.status_code == 202
    scene = first.json()
    assert first.headers["location"] == f"/v1/scenes/{scene['id']}"
    assert (scene["name"], scene["tasks"], scene["label"]) == ("harbour.tif", ["caption", "detect"], "tanker")
    assert (scene["priority"], scene["deadline"], scene["source"]) == (7, None, "upload")
    assert parts.journal.scene(scene["id"]).path.read_bytes() == tiff
    assert parts.pipeline.woken == 1
    again = ask(app, "POST", "/v1/scenes", content=tiff, headers=TIFF, params=query)
    assert (again.status_code, again.json()["id"]) == (200, scene["id"])
    assert left(parts) == []


def test_a_form_is_the_same_as_a_body(app: FastAPI, parts: Any, tiff: bytes) -> None:
    first = ask(app, "POST", "/v1/scenes", files={"file": ("Küste.tif", tiff, "image/tiff")})
    assert (first.status_code, first.json()["name"]) == (202, "Küste.tif")
    octets = {"Content-Type": "application/octet-stream; x=y"}
    assert ask(app, "POST", "/v1/scenes", content=tiff, headers=octets).json()["id"] == first.json()["id"]


def test_a_deadline_counts_from_now(app: FastAPI, tiff: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    answer = ask(app, "POST", "/v1/scenes?deadline_s=60", content=tiff, headers=TIFF)
    assert answer.json()["deadline"] == 1060.0


def test_the_bytes_of_a_form_arrive_as_they_are_whatever_the_pieces(app: FastAPI, parts: Any, tiff: bytes) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.tif"\r\n\r\n'
    body = head + tiff + b"\r\n--b--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 13):
            yield body[start : start + 13]

    answer = ask(app, "POST", "/v1/scenes", **form(pieces(), "b"))  # type: ignore[arg-type]
    assert answer.status_code == 202
    assert parts.journal.scene(answer.json()["id"]).path.read_bytes() == tiff


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "a\x00b.tif", "..", "\\\\host\\share", "🚢" * 80, "-rf", ".hidden", "con: x|y.tif"]
)
def test_hostile_names_stay_in_their_folder(app: FastAPI, parts: Any, tiff: bytes, name: str) -> None:
    answer = ask(app, "POST", "/v1/scenes", content=tiff, headers=TIFF, params={"name": name})
    assert answer.status_code == 202
    path = parts.journal.scene(answer.json()["id"]).path
    assert path.parent == parts.settings.data_dir / "scenes" / answer.json()["id"]


@pytest.mark.parametrize(
    ("options", "status", "detail"),
    [
        ({"content": b"hello", "headers": TIFF}, 422, ""),
        ({"content": b"", "headers": TIFF}, 422, ""),
        ({"content": b"hello"}, 415, "Content-Type '' is no scene"),
        ({"content": b"{}", "headers": {"Content-Type": "application/json"}}, 415, "image/tiff"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, 400, "without a boundary"),
        (form(b"", "b" * 300), 400, "broken"),
        (form(b"--x--\r\n"), 400, ""),
        (form(b"nonsense"), 400, "broken"),
        (form(b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'), 400, "ends in the middle"),
        (form(b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nabc\r\n--x--'), 400, "part 'other'"),
        (form(b"--x\r\nX-Header: 1\r\n\r\nabc\r\n--x--"), 400, "part ''"),
        (form(b"--x\r\nX-Header: " + b"1" * 9000 + b"\r\n\r\nabc\r\n--x--"), 400, ""),
        (form(2 * b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n' + b"--x--"), 400, "two parts"),
    ],
)
def test_what_is_no_scene_is_refused_and_gone(
    app: FastAPI, parts: Any, options: dict[str, Any], status: int, detail: str
) -> None:
    answer = ask(app, "POST", "/v1/scenes", **options)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert str(parts.settings.data_dir) not in answer.text
    assert left(parts) == []
    assert parts.journal.scenes() == []


@pytest.mark.parametrize(
    "query",
    [
        "priority=-101",
        "priority=1e3",
        "priority=99999999999999999999999",
        "deadline_s=0",
        "deadline_s=nan",
        "deadline_s=-inf",
        "label=",
        "label=" + "x" * 65,
        "label=%00",
        "tasks=dance",
        "tasks=",
        "name=" + "x" * 256,
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(app: FastAPI, parts: Any, tiff: bytes, query: str) -> None:
    answer = ask(app, "POST", f"/v1/scenes?{query}", content=tiff, headers=TIFF)
    assert answer.status_code == 422
    assert left(parts) == []


def test_a_file_beyond_the_limit_is_refused_before_and_while_it_arrives(app: FastAPI, parts: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(MIB)

    async def formed() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        async for piece in pieces():
            yield piece

    for options in (
        {"content": bytes(3 * MIB), "headers": TIFF},
        {"content": pieces(), "headers": TIFF},
        {"content": b"x", "headers": TIFF | {"Content-Length": "9" * 4000}},
        form(formed()),  # type: ignore[arg-type]
    ):
        answer = ask(app, "POST", "/v1/scenes", **options)
        assert answer.status_code == 413
        assert "2 MiB, which is limits.upload_mib" in answer.json()["detail"]
        assert left(parts) == []


def test_a_full_queue_says_no_before_the_file_is_sent(
    parts_with: Callable[..., Any], tiff: bytes, tmp_path: Path
) -> None:
    parts = parts_with(limits=LimitSettings(upload_mib=2, free_disk_mib=1, queued_scenes=1))
    accepted(parts, tmp_path, seed=9)
    asked = []

    async def pieces() -> AsyncIterator[bytes]:
        asked.append(1)
        yield tiff

    answer = ask(make_app(parts), "POST", "/v1/scenes", content=pieces(), headers=TIFF)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert asked == []


def test_uploads_on_their_way_count_as_disk_that_is_used(
    app: FastAPI, parts: Any, tiff: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = []
    monkeypatch.setattr(parts.intake, "admit", lambda size_bytes=0: admitted.append(size_bytes))

    async def both() -> list[int]:
        began, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield tiff[:1000]
            began.set()
            await go_on.wait()
            yield tiff[1000:]

        size = {"Content-Length": str(len(tiff))}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = asyncio.create_task(client.post("/v1/scenes", content=slow(), headers=TIFF | size))
            await began.wait()
            second = await client.post("/v1/scenes", content=tiff, headers=TIFF)
            go_on.set()
            return [(await first).status_code, second.status_code]

    assert sorted(asyncio.run(both())) == [200, 202]
    assert admitted[:2] == [len(tiff), 2 * len(tiff)]


def test_a_body_that_says_no_length_is_stopped_when_the_disk_is_nearly_full(
    parts_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_with(limits=LimitSettings(upload_mib=4096, free_disk_mib=1))
    sent: list[None] = []
    asked: list[int] = []

    def admit_bytes(size_bytes: int) -> None:
        asked.append(size_bytes)
        if len(asked) == 3:  # before it begins, and twice on the way
            raise BusyError("no space: the service keeps 1 MiB of its disk free; send it again later", 60.0)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            sent.append(None)
            yield bytes(1 << 20)

    monkeypatch.setattr(parts.intake, "admit_bytes", admit_bytes)
    monkeypatch.setattr("fusar_edge.service.http.uploads.ROOM_BYTES", 4 << 20)

    async def upload() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(parts))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/scenes", content=endless(), headers=TIFF)

    answer = asyncio.run(upload())
    assert answer.status_code in (429, 507)
    assert len(sent) < 20
    assert not list(parts.incoming.iterdir())


def test_a_full_disk_is_said_to_be_full(app: FastAPI, parts: Any, tiff: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

        def close(self) -> None:
            pass

    monkeypatch.setattr(uploads, "open", lambda path, mode: path.touch() or Full(), raising=False)
    answer = ask(app, "POST", "/v1/scenes", content=tiff, headers=TIFF)
    assert answer.status_code == 507
    assert "secret" not in answer.text
    assert left(parts) == []


def test_a_busy_intake_leaves_nothing(app: FastAPI, parts: Any, tiff: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise BusyError("later", 5.0)

    monkeypatch.setattr(parts.intake, "offer", busy)
    answer = ask(app, "POST", "/v1/scenes", content=tiff, headers=TIFF)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert left(parts) == []


def test_a_client_that_falls_silent_is_given_up(app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SILENCE_S", 0.02)

    async def silent() -> AsyncIterator[bytes]:
        yield b"II*\0"
        await asyncio.Event().wait()

    answer = ask(app, "POST", "/v1/scenes", content=silent(), headers=TIFF)
    assert answer.status_code == 408
    assert left(parts) == []


def test_a_client_that_leaves_leaves_nothing(app: FastAPI, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_BYTES", 1)
    ended = asyncio.Event()
    seen: list[list[str]] = []
    store = uploads.Uploads._store

    async def watched(self: Any, *args: Any) -> None:
        try:
            await store(self, *args)
        finally:
            seen.append(left(parts))
            loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(uploads.Uploads, "_store", watched)
    head = "POST /v1/scenes HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/tiff\r\nContent-Length: 100000\r\n\r\n"

    async def leave(address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"II*\0" + bytes(1000))
        await asyncio.wait_for(ended.wait(), 20)

    loop = asyncio.new_event_loop()
    try:
        with served(app, parts) as address:
            loop.run_until_complete(leave(address))
    finally:
        loop.close()
    assert len(seen[0]) == 1
    assert left(parts) == []
    assert parts.journal.scenes() == []


def test_an_upload_over_a_socket_is_refused_in_words(app: FastAPI, parts: Any, tiff: bytes) -> None:
    with served(app, parts) as address, httpx.Client(base_url=address) as client:
        assert client.post("/v1/scenes", content=bytes(3 * MIB), headers=TIFF).status_code == 413
        assert client.post("/v1/scenes", content=tiff, headers=TIFF).status_code == 202


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"href": "https://evil.example/item.json"}', 422),
        (b'{"href": "/etc/passwd"}', 422),
        (b'{"href": "file:///etc/passwd"}', 422),
        (b'{"href": "\\u0000"}', 422),
        (b'{"href": "\\ud800"}', 422),
        (b'{"href": ""}', 422),
        (b'{"href": "x", "item": {}}', 422),
        (b'{"item": {"id": "\\ud800"}}', 422),
        (b'{"item": 3}', 422),
        (b'{"item": {"a": NaN}}', 422),
        (b'{"item": ' + b"[" * 100_000 + b"}", 422),
        (b'{"more": 1}', 422),
        (b"\xff\xfe", 422),
    ],
)
def test_what_is_no_item_is_refused(app: FastAPI, parts: Any, content: bytes, status: int) -> None:
    answer = ask(app, "POST", "/v1/scenes/stac", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert left(parts) == []


def test_an_item_of_an_allowed_folder_is_accepted(parts_with: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    path = write_tiff(root / "vv.tif")
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S1A_1",
        "properties": {"datetime": "2021-01-05T01:58:33Z"},
        "assets": {"vv": {"href": str(path), "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }
    app = make_app(parts_with(stac=StacSettings(roots=(root,))))
    answer = ask(app, "POST", "/v1/scenes/stac?priority=3", json={"item": item})
    assert answer.status_code == 202
    assert (answer.json()["source"], answer.json()["priority"]) == ("stac", 3)
    assert str(root) not in answer.text
    text = {"Content-Type": "text/plain"}
    assert ask(app, "POST", "/v1/scenes/stac", content=b"{}", headers=text).status_code == 415

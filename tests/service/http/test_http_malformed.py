"""A thousand malformed uploads through a real server: each is refused in words, nothing crashes, nothing stays."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import httpx
from malformed_files import Malformed, malformed_files
from served_app import served
from service_parts import accepted, ask

from fusar_edge.service.http.app import make_app

COUNT = 1000


def sent(client: httpx.Client, given: Malformed, as_form: bool) -> httpx.Response:
    if not as_form:
        name = urllib.parse.quote(given.name[:3000].encode(errors="surrogatepass"))
        headers = {"content-type": "image/tiff"}
        return client.post(f"/v1/scenes?name={name}", content=given.data, headers=headers)
    name = given.name.encode(errors="surrogatepass").replace(b'"', b"%22").replace(b"\n", b"%0A")
    head = b'--=edge\r\ncontent-disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'
    body = head + given.data + b"\r\n--=edge--\r\n"
    return client.post("/v1/scenes", content=body, headers={"content-type": "multipart/form-data; boundary==edge"})


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("journal.sqlite")}


def test_a_thousand_malformed_uploads_are_refused_and_leave_nothing(parts: Any, tmp_path: Path) -> None:
    app = make_app(parts)
    before = files_below(tmp_path)
    wrong = []
    with served(app, parts) as address, httpx.Client(base_url=address, timeout=60) as client:
        for number, given in enumerate(malformed_files(COUNT, seed=7)):
            answer = sent(client, given, as_form=number % 2 == 0)
            refused = 400 <= answer.status_code < 500 and answer.json()["detail"]
            if not refused or str(tmp_path) in answer.text:
                wrong.append((number, given.kind, given.name[:40], answer.status_code, answer.text[:200]))
        assert client.get("/readyz").status_code == 200
    assert not wrong
    assert files_below(tmp_path) == before
    assert parts.journal.counts()["scenes"] == {"queued": 0, "running": 0, "done": 0, "failed": 0}
    row = accepted(parts, tmp_path)
    assert ask(app, "GET", f"/v1/scenes/{row.id}").status_code == 200

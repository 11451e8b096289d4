"""The files of the page and the pictures behind it, without a browser."""

from __future__ import annotations

import gzip
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_station import Station, station

from fusar_edge.service.http import pictures
from fusar_edge.service.http.page import FOLDER, read_assets
from fusar_edge.service.map import preview
from fusar_edge.service.map.preview import Previews

OWN = {name: asset for name, asset in read_assets().items() if not name.startswith("vendor/")}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    with station(tmp_path_factory.mktemp("station")) as opened:
        yield opened


def ask(url: str, **headers: str) -> tuple[int, Any, bytes]:
    """Status, headers, body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as got:
            return got.status, got.headers, got.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers, refused.read()


def test_every_file_that_the_page_names_is_there() -> None:
    named = set()
    for asset in OWN.values():
        text = asset.body.decode()
        named |= {found.removeprefix("/page/") for found in re.findall(r"\"(/page/[^\"]+)\"", text)}
        named |= {found.removeprefix("./") for found in re.findall(r"from \"(\./[^\"]+)\"", text)}
    assert named <= set(read_assets())
    assert set(OWN) - {"index.html"} <= named


def test_the_page_names_no_other_server() -> None:
    for name, asset in OWN.items():
        urls = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", asset.body.decode()))
        assert urls <= {"http://www.w3.org"}, name


def test_scripts_and_styles_stand_in_files_alone() -> None:
    text = OWN["index.html"].body.decode()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", text)


def test_the_library_of_maps_comes_with_its_licence() -> None:
    assert "Redistribution and use" in (FOLDER / "vendor" / "maplibre-gl.LICENSE.txt").read_text()
    assert "sourceMappingURL" not in read_assets()["vendor/maplibre-gl.mjs"].body.decode()


def test_files_are_sent_packed_and_only_when_they_changed(served: Station) -> None:
    status, headers, body = ask(f"{served.url}/page/vendor/maplibre-gl.mjs", **{"Accept-Encoding": "gzip"})
    assert status == 200
    assert headers["Content-Type"].startswith("text/javascript")
    assert gzip.decompress(body) == (FOLDER / "vendor" / "maplibre-gl.mjs").read_bytes()
    assert len(body) < 400_000
    assert ask(f"{served.url}/page/vendor/maplibre-gl.mjs", **{"If-None-Match": headers["ETag"]})[0] == 304
    assert ask(f"{served.url}/")[2] == (FOLDER / "index.html").read_bytes()


@pytest.mark.parametrize("name", ["nothing.js", "../http/page.py", "..%2fhttp%2fpage.py", "%2e%2e/parts.py", ""])
def test_nothing_but_the_page_is_sent(served: Station, name: str) -> None:
    assert ask(f"{served.url}/page/{name}")[0] == 404


def test_pictures_are_kept_for_ever_by_browsers(served: Station) -> None:
    row = served.scene()
    about = json.loads(ask(f"{served.url}/v1/scenes/{row.id}/xyz.json")[2])
    assert about["preview"] == "ready"
    url = served.url + about["tiles"][0].format(z=0, x=0, y=0)
    status, headers, body = ask(url)
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert "immutable" in headers["Cache-Control"]
    assert body.startswith(b"\x89PNG")
    crop = ask(f"{served.url}/v1/scenes/{row.id}/tiles/0/crop.png")
    assert crop[0] == 200
    assert crop[2].startswith(b"\x89PNG")


def test_outlines_of_tiles_are_those_of_the_plan_in_force(served: Station) -> None:
    row = served.scene()
    path = f"{served.url}/v1/scenes/{row.id}/plan.geojson"
    assert len(json.loads(ask(path)[2])["features"]) == 1  # it waits: the bundle's plan
    served.start(row)
    assert len(json.loads(ask(path)[2])["features"]) == 4


def test_what_is_not_there_is_404(served: Station) -> None:
    row = served.scene()
    for path in ("xyz/3/8/0.png", "tiles/1/crop.png"):
        assert ask(f"{served.url}/v1/scenes/{row.id}/{path}")[0] == 404
    for path in ("xyz.json", "xyz/0/0/0.png", "plan.geojson", "tiles/0/crop.png"):
        assert ask(f"{served.url}/v1/scenes/{'0' * 16}/{path}")[0] == 404


def test_a_scene_whose_file_is_gone_says_so_without_its_path(served: Station) -> None:
    row = served.scene()
    row.path.unlink()
    status, _, body = ask(f"{served.url}/v1/scenes/{row.id}/xyz/0/0/0.png")
    assert status == 409
    assert "is gone" in json.loads(body)["detail"]
    assert str(served.folder) not in body.decode()


def test_a_large_scene_says_that_its_copy_is_being_made_until_it_is(
    served: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "DIRECT_PX", 100)
    monkeypatch.setattr(preview, "PREVIEW_PX", 100)
    go, made = threading.Event(), threading.Event()
    write = preview.write_preview

    def slowly(*given: Any) -> None:
        assert go.wait(20)
        write(*given)
        made.set()

    monkeypatch.setattr(preview, "write_preview", slowly)
    row = served.scene()
    tile, about = f"{served.url}/v1/scenes/{row.id}/xyz/2/0/1.png", f"{served.url}/v1/scenes/{row.id}/xyz.json"
    status, headers, _ = ask(tile)
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert json.loads(ask(about)[2])["preview"] == "making"
    go.set()
    assert made.wait(20)
    assert ask(tile)[0] == 200
    assert json.loads(ask(about)[2])["preview"] == "ready"


def test_a_service_forgets_copies_of_scenes_that_it_does_not_know(
    open_station: Callable[..., Station], tmp_path: Any
) -> None:
    old = tmp_path / "data" / "previews" / f"{'f' * 16}.tif"

    class Made(Previews):
        def sweep(self, known: Callable[[str], bool]) -> None:
            old.parent.mkdir(parents=True)
            old.touch()
            super().sweep(known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "Previews", Made)
        open_station()
    assert old.parent.is_dir()
    assert not old.exists()

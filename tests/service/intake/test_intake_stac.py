"""STAC items: the right asset, from allowed places alone."""

from __future__ import annotations

import http.server
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from intake_station import LIMITS, Open, Station
from small_scenes import small_scene

from fusar_edge.errors import BusyError, InputError
from fusar_edge.service.intake.download import Downloader, checked_url, is_public
from fusar_edge.service.intake.stac import acquired_from_item, fetch, item_from_json, offer_item, scene_asset
from fusar_edge.service.settings import LimitSettings, StacSettings

GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def item(**changes: Any) -> dict[str, Any]:
    base = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S1-test",
        "properties": {"datetime": "2021-01-05T01:50:04Z"},
        "assets": {"vv": {"href": "./s.tif", "type": GEOTIFF, "roles": ["data"]}},
        "links": [],
    }
    return {**base, **changes}


class Host:
    """A server on loopback; `pages`: path -> (status, headers, body)."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.path, self.headers.get("Host", "")))
                status, headers, body = host.pages.get(self.path.partition("?")[0], (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://{self.name}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def allowed(host: Host, station_with: Open) -> Station:
    return station_with(stac=StacSettings(hosts=(host.name,)))


def refused(station: Station, match: str, **given: Any) -> None:
    with pytest.raises(InputError, match=match):
        offer_item(station.intake, **given)
    assert not station.left


def test_an_item_by_address_brings_its_scene_and_its_time(host: Host, allowed: Station) -> None:
    host.pages = {
        "/c/i.json": (200, {}, json.dumps(item()).encode()),
        "/c/s.tif": (200, {}, small_scene()),
    }
    row, new = offer_item(allowed.intake, href=f"{host.url}/c/i.json?sig=secret", tasks=["count"], priority=3)
    assert new
    assert (row.name, row.source, row.tasks, row.priority) == ("S1-test_vv.tif", "stac", ("count",), 3)
    assert row.submitted_as == f"{host.url}/c/s.tif"
    assert row.acquired == "2021-01-05T01:50:04Z"
    assert [path for path, _ in host.asked] == ["/c/i.json?sig=secret", "/c/s.tif"]
    assert not list(allowed.intake.incoming.iterdir())


def test_an_item_that_is_given_is_resolved_by_its_own_link(host: Host, allowed: Station) -> None:
    host.pages["/c/s.tif"] = (200, {}, small_scene())
    given = item(links=[{"rel": "self", "href": f"{host.url}/c/i.json"}])
    refused(allowed, "relative href", item=item())
    assert offer_item(allowed.intake, item=given)[1]


def test_a_local_item_and_asset_below_a_root_are_linked_not_moved(station_with: Open, tmp_path: Path) -> None:
    root = tmp_path / "catalogue"
    root.mkdir()
    (root / "s.tif").write_bytes(small_scene())
    (root / "i.json").write_text(json.dumps(item()))
    station = station_with(stac=StacSettings(roots=(root,)))
    row, _ = offer_item(station.intake, href=str(root / "i.json"))
    assert row.submitted_as == "s.tif"
    assert (root / "s.tif").exists()
    again, new = offer_item(station.intake, href=(root / "i.json").as_uri())
    assert (again.id, new) == (row.id, False)


def test_what_lies_outside_the_roots_is_refused_in_the_same_words_whether_it_exists_or_not(
    station_with: Open, tmp_path: Path
) -> None:
    root, outside = tmp_path / "catalogue", tmp_path / "outside.json"
    root.mkdir()
    outside.write_text(json.dumps(item()))
    (tmp_path / "s.tif").write_bytes(small_scene())
    (root / "s.tif").write_bytes(small_scene())
    (root / "link.json").symlink_to(outside)
    (root / "loop.json").symlink_to(root / "loop.json")
    station = station_with(stac=StacSettings(roots=(root,)))
    messages = set()
    for href in (
        str(outside), str(tmp_path / "none.json"), str(root / ".." / "outside.json"), str(root / "link.json"),
        outside.as_uri(), str(root / "loop.json"), str(root), f"file://localhost{outside}", "/etc/passwd",
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"below the folders") as error:
            fetch(station.intake, href=href)
        messages.add(str(error.value).partition("'")[2].partition("'")[2])
        assert str(tmp_path) not in str(error.value)
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("href", "match"),
    [
        ("https://elsewhere.example/i.json", "host elsewhere.example:443 is not allowed"),
        ("http://169.254.169.254/latest/meta-data", "not allowed"),
        ("http://localhost:1/i.json", "not allowed"),
        ("https://good@elsewhere.example/", "address must be"),
        ("https://elsewhere.example\\@127.0.0.1/", "address must be"),
        ("https:///i.json", "address must be"),
        ("http://[::1/", "address must be"),
        ("https://a b/", "address must be"),
        ("https://host:99999/", "address must be"),
        ("ftp://127.0.0.1/i.json", "ftp: is not fetched"),
        ("s3://bucket/i.json", "s3: is not fetched"),
        ("data:application/json,{}", "data: is not fetched"),
        ("file://elsewhere/i.json", "path of this machine"),
        ("i.json", "relative href"),
        ("", "empty"),
        ("/a\0b", "null character"),
    ],
)
def test_an_address_that_is_not_allowed_is_refused(allowed: Station, href: str, match: str) -> None:
    refused(allowed, match, href=href)


def test_nothing_is_fetched_from_anywhere_unless_settings_say_so(station: Station, host: Host) -> None:
    refused(station, "is not allowed", href=f"{host.url}/i.json")
    refused(station, "below the folders", href="/etc/passwd")
    assert not host.asked


def test_an_allowed_item_may_not_lead_elsewhere(host: Host, allowed: Station, tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    secret.write_bytes(small_scene())
    for href, match in (
        ("http://169.254.169.254/s.tif", "not allowed"),
        (secret.as_uri(), "names a local file"),
        ("//elsewhere.example/s.tif", "not allowed"),
    ):
        body = json.dumps(item(assets={"vv": {"href": href, "type": GEOTIFF}})).encode()
        host.pages["/i.json"] = (200, {}, body)
        refused(allowed, match, href=f"{host.url}/i.json")


def test_redirects_are_followed_among_allowed_hosts_only_and_not_for_ever(host: Host, allowed: Station) -> None:
    host.pages = {
        "/i.json": (302, {"Location": "/j.json"}, b""),
        "/j.json": (200, {}, json.dumps(item()).encode()),
        "/s.tif": (200, {}, small_scene()),
        "/away": (302, {"Location": "http://localhost:1/x"}, b""),
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/loop": (302, {"Location": "/loop"}, b""),
    }
    refused(allowed, "not allowed", href=f"{host.url}/away")
    refused(allowed, "address must be", href=f"{host.url}/file")
    refused(allowed, "more than 3 redirects", href=f"{host.url}/loop")
    assert offer_item(allowed.intake, href=f"{host.url}/i.json")[1]


@pytest.mark.parametrize(
    ("page", "match"),
    [
        ((404, {}, b""), "answered 404"),
        ((200, {"Content-Length": str(1 << 40)}, b""), "at most"),
        ((200, {"Content-Length": "100000"}, b"short"), "5 of 100000 bytes|connection failed"),
        ((200, {"Content-Encoding": "gzip"}, b"x"), "answered 200"),
        ((200, {}, b"x" * (3 << 20)), "at most"),
        ((200, {}, b"no scene"), "no GeoTIFF"),
    ],
)
def test_a_download_that_goes_wrong_leaves_nothing(
    host: Host, station_with: Open, page: tuple[int, dict[str, str], bytes], match: str
) -> None:
    limits = LimitSettings(upload_mib=2, free_disk_mib=1)
    station = station_with(limits=limits, stac=StacSettings(hosts=(host.name,)))
    host.pages = {"/i.json": (200, {}, json.dumps(item()).encode()), "/s.tif": page}
    refused(station, match, href=f"{host.url}/i.json")


def test_a_body_without_length_is_cut_off_at_the_limit(host: Host, station_with: Open) -> None:
    station = station_with(limits=LimitSettings(upload_mib=1, free_disk_mib=1), stac=StacSettings(hosts=(host.name,)))
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    host.pages["/s.tif"] = (200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, chunk * 3 + b"0\r\n\r\n")
    given = item(assets={"vv": {"href": f"{host.url}/s.tif", "type": GEOTIFF}})
    refused(station, "more than 1048576 bytes", item=given)


def test_no_download_begins_while_the_queue_is_full(host: Host, station_with: Open) -> None:
    station = station_with(stac=StacSettings(hosts=(host.name,)))
    for seed in range(LIMITS.queued_scenes):
        station.intake.offer(station.upload(small_scene(seed)), name="s.tif", source="upload", owned=True)
    with pytest.raises(BusyError):
        offer_item(station.intake, item=item(assets={"vv": {"href": f"{host.url}/s.tif", "type": GEOTIFF}}))
    assert not host.asked


Lookup = Callable[..., None]


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> tuple[Lookup, list[str]]:
    """`means("10.0.0.1")`: every name has that address; the list tells where connections went, all of which fail."""
    went: list[str] = []

    def look_up(*addresses: str) -> None:
        rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)

    def connect(address: tuple[str, int], *_: Any) -> None:
        went.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    return look_up, went


@pytest.mark.parametrize(
    "addresses",
    [("10.0.0.1",), ("127.0.0.1",), ("169.254.169.254",), ("93.184.216.34", "192.168.0.1"), ("::1",), ("fe80::1",),
     ("::ffff:10.0.0.1",), ("64:ff9b::a00:1",), ("2002:a00:1::",), ("100.64.0.1",), ("0.0.0.0",), ("224.0.0.1",)],
)  # fmt: skip
def test_an_allowed_name_that_means_an_inner_address_is_not_asked(
    station_with: Open, means: tuple[Lookup, list[str]], addresses: tuple[str, ...]
) -> None:
    look_up, went = means
    station = station_with(stac=StacSettings(hosts=("catalogue.example",)))
    look_up(*addresses)
    refused(station, "not public", href="https://catalogue.example/i.json")
    assert went == []


def test_the_connection_goes_to_the_address_that_was_checked(
    station_with: Open, means: tuple[Lookup, list[str]]
) -> None:
    look_up, went = means
    station = station_with(stac=StacSettings(hosts=("catalogue.example", "10.1.2.3", "localhost:80")))
    look_up("93.184.216.34")
    refused(station, "cannot be fetched", href="https://catalogue.example/i.json")
    refused(station, "cannot be fetched", href="https://10.1.2.3/i.json")  # the operator wrote this address itself
    refused(station, "only https", href="http://catalogue.example:443/i.json")
    look_up("127.0.0.1")
    refused(station, "cannot be fetched", href="http://localhost/i.json")
    assert went == ["93.184.216.34", "10.1.2.3", "127.0.0.1"]
    look_up("93.184.216.34")
    refused(station, "not public", href="http://localhost/i.json")


def test_public_addresses_are_public() -> None:
    for text in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"):
        assert is_public(ipaddress.ip_address(text))


def test_an_address_is_kept_as_it_is_when_it_is_plain() -> None:
    url = "https://host.example:8443/a%20b/i.json?x=1"
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("assets", "key"),
    [
        ({"vh": {}, "vv": {}}, "vv"),
        ({"gamma0_HV": {}, "gamma0_HH": {}}, "gamma0_HH"),
        ({"a": {"sar:polarizations": ["VH"]}, "b": {"sar:polarizations": ["VV"]}}, "b"),
        ({"thumbnail": {"roles": ["thumbnail"]}, "GEC": {}}, "GEC"),
        ({"quicklook": {"roles": ["overview"]}, "x": {"roles": ["data"]}, "vv": {"roles": []}}, "x"),
        ({"doc": {"type": "application/json"}, "img": {"type": None, "href": "a/b.TIFF?sig=1"}}, "img"),
        ({"vv-mask": {"roles": ["mask"]}, "hh": {"type": "image/tiff"}}, "hh"),
    ],
)
def test_the_asset_of_data_is_chosen(assets: dict[str, dict[str, Any]], key: str) -> None:
    full = {name: {"href": "s.tif", "type": GEOTIFF, **asset} for name, asset in assets.items()}
    assert scene_asset(item_from_json(item(assets=full)))[0] == key


@pytest.mark.parametrize(
    "given",
    [
        [], {}, "item", 3, item(type="Collection"), item(assets=[]), item(id=4), item(assets={"a": {}}),
        item(assets={"a": {"href": 4}}), item(links={}), item(assets={"png": {"href": "x.png", "type": "image/png"}}),
        item(assets={}),
    ],
)  # fmt: skip
def test_what_is_no_item_of_a_scene_is_refused(station: Station, given: Any) -> None:
    refused(station, "STAC|GeoTIFF asset", item=given)


@pytest.mark.parametrize(
    ("properties", "acquired"),
    [
        ({"datetime": "2021-01-05T01:50:04.123Z"}, "2021-01-05T01:50:04Z"),
        ({"datetime": "2021-01-05T03:50:04+02:00"}, "2021-01-05T01:50:04Z"),
        ({"datetime": None, "start_datetime": "2021-01-05T01:50:04Z"}, "2021-01-05T01:50:04Z"),
        ({"datetime": "yesterday"}, None),
        ({"datetime": 5}, None),
        ({}, None),
    ],
)
def test_the_time_of_acquisition_is_the_items(properties: dict[str, Any], acquired: str | None) -> None:
    assert acquired_from_item(item_from_json(item(properties=properties))) == acquired


def test_a_full_disk_while_downloading_is_told_as_such(
    host: Host, allowed: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    host.pages["/s.tif"] = (200, {}, small_scene())
    monkeypatch.setattr("fusar_edge.service.intake.download._pieces", full)
    with pytest.raises(BusyError, match="no space"):
        Downloader(allowed.intake).to_incoming(f"{host.url}/s.tif")
    assert not allowed.left


def test_a_large_file_that_is_asked_for_as_an_item_is_not_read(station_with: Open, tmp_path: Path) -> None:
    large = tmp_path / "scenes" / "large.tif"
    large.parent.mkdir()
    with large.open("wb") as file:
        file.truncate(1 << 40)  # a hole: reading it would take all memory
    station = station_with(stac=StacSettings(roots=(large.parent,)))
    with pytest.raises(InputError, match=r"large\.tif has more than 4096 KiB: it is no STAC item"):
        fetch(station.intake, href=str(large))

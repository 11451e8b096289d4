from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alphaearth_files import Codes, random_codes, write_cog, write_north_up_vrt, write_raster
from http_files import FileServer, file_server

from fusar_edge.anchors.codes import NODATA
from fusar_edge.anchors.sources import locations
from fusar_edge.anchors.sources.locations import (
    USER_AGENT,
    fetch,
    fingerprint,
    gdal_path,
    gdal_settings,
    is_remote,
    name_of,
    opened,
)
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import sha256_file

PLACE: Any = {"west": 172320, "north": 3932160 + 640}


@pytest.fixture(scope="module")
def codes() -> Codes:
    return random_codes(64, 96, masked=0.3)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, codes: Codes) -> Path:
    """Holds bk/2024/17N/{up,down}.tiff."""
    folder = tmp_path_factory.mktemp("host") / "bk" / "2024" / "17N"
    folder.mkdir(parents=True)
    write_cog(folder / "up.tiff", codes, **PLACE)
    write_cog(folder / "down.tiff", codes, bottom_up=True, **PLACE)
    write_north_up_vrt(folder / "down.vrt", folder / "down.tiff")
    (folder / "sly.tiff").write_bytes((folder / "down.vrt").read_bytes())
    return folder.parents[2]


@pytest.fixture
def server(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in [name for name in os.environ if name.upper().startswith(("AWS_", "GS_", "GOOGLE_", "GDAL_", "CPL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(locations, "RETRY_DELAY_S", 0.01)
    with file_server(bucket) as server:
        monkeypatch.setenv("AWS_S3_ENDPOINT", server.host)
        monkeypatch.setenv("AWS_HTTPS", "NO")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        monkeypatch.setenv("CPL_GS_ENDPOINT", f"{server.url}/")
        yield server


def address(server: FileServer, scheme: str, name: str) -> str:
    host = f"{server.url}/" if scheme == "http" else f"{scheme}://"
    return f"{host}bk/2024/17N/{name}"


@pytest.mark.parametrize(
    ("location", "path", "remote", "name"),
    [
        ("https://h.example/aef/t.tiff", "/vsicurl/https://h.example/aef/t.tiff", True, "t.tiff"),
        ("HTTP://h.example/t.tiff?sig=a/b", "/vsicurl/http://h.example/t.tiff?sig=a/b", True, "t.tiff"),
        ("s3://us-west-2.o.coop/aef/t.tiff", "/vsis3/us-west-2.o.coop/aef/t.tiff", True, "t.tiff"),
        ("gs://alphaearth/v1/t.tiff", "/vsigs/alphaearth/v1/t.tiff", True, "t.tiff"),
        ("/vsicurl/https://h.example/t.tiff", "/vsicurl/https://h.example/t.tiff", True, "t.tiff"),
        ("/vsizip//vsis3/b/t.zip/t.tiff", "/vsizip//vsis3/b/t.zip/t.tiff", True, "t.tiff"),
        ("/vsizip//data/t.zip/t.tiff", "/vsizip//data/t.zip/t.tiff", False, "t.tiff"),
        ("data/2024/what?.tif", "data/2024/what?.tif", False, "what?.tif"),
    ],
)
def test_a_location_becomes_a_path_of_gdals_file_systems(location: str, path: str, remote: bool, name: str) -> None:
    assert (gdal_path(location), is_remote(location), name_of(location)) == (path, remote, name)


def test_another_scheme_is_refused_with_those_allowed() -> None:
    with pytest.raises(AnchorError, match=r"ftp://h/t\.tiff: cannot read ftp://; give a path, or https://"):
        gdal_path("ftp://h/t.tiff")


def test_requests_are_unsigned_unless_the_environment_has_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_NO_SIGN_REQUEST", "GS_NO_SIGN_REQUEST", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert gdal_settings("s3://b/k")["AWS_NO_SIGN_REQUEST"] is True
    monkeypatch.setenv("AWS_PROFILE", "station")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")
    assert not {"AWS_NO_SIGN_REQUEST", "GS_NO_SIGN_REQUEST"} & set(gdal_settings("s3://b/k"))


def test_what_the_environment_sets_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(gdal_settings()) == set(gdal_settings("local.tif")) == {"GDAL_CACHEMAX"}
    monkeypatch.setenv("GDAL_HTTP_USERAGENT", "mine")
    monkeypatch.setenv("GDAL_CACHEMAX", "512")
    assert not {"GDAL_HTTP_USERAGENT", "GDAL_CACHEMAX"} & set(gdal_settings("https://h/t.tiff"))


@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_a_remote_file_gives_the_very_codes_and_every_request_names_us(
    server: FileServer, codes: Codes, scheme: str
) -> None:
    with opened(address(server, scheme, "up.tiff")) as dataset:
        np.testing.assert_array_equal(np.moveaxis(dataset.read(), 0, -1), codes)
    with opened(address(server, scheme, "down.tiff"), overview=1) as dataset:
        assert (dataset.transform.e, dataset.shape) == (40, (16, 24))
    assert {request.user_agent for request in server.requests} == {USER_AGENT}
    assert {request.path for request in server.requests} <= {f"/bk/2024/17N/{name}.tiff" for name in ("up", "down")}


def test_a_window_is_read_by_ranges_and_not_the_whole_file(server: FileServer, bucket: Path) -> None:
    from rasterio.windows import Window

    big = write_raster(bucket / "bk" / "big.tiff", np.tile(random_codes(64, 64, seed=3), (6, 6, 1)), **PLACE)
    with opened(f"{server.url}/bk/big.tiff") as dataset:
        dataset.read(window=Window(0, 0, 64, 64))
    spans = [tuple(map(int, r.range.removeprefix("bytes=").split("-"))) for r in server.requests if r.range]
    assert 0 < sum(stop - start + 1 for start, stop in spans) < big.stat().st_size / 4


@pytest.mark.parametrize(
    ("scheme", "status", "remedy"),
    [
        ("http", 403, "the server refuses it"),
        ("http", 404, "nothing is there"),
        ("s3", 403, "set AWS_ACCESS_KEY_ID"),
        ("gs", 403, "set GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs", 404, "nothing is there"),
        ("http", 501, "a copy on disk"),
    ],
)
def test_a_refusal_names_the_location_the_status_and_what_to_check(
    server: FileServer, scheme: str, status: int, remedy: str
) -> None:
    location = address(server, scheme, "no.tiff")
    server.answers["/bk/2024/17N/no.tiff"] = [status] * 9
    with pytest.raises(AnchorError) as caught, opened(location):
        pass
    assert str(caught.value).startswith(f"{location}: GDAL cannot open it (HTTP {status}; ")
    assert remedy in str(caught.value)


def test_a_busy_server_is_asked_again(server: FileServer, codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    server.answers["/bk/2024/17N/up.tiff"] = [503, 503]
    with opened(address(server, "http", "up.tiff")) as dataset:
        np.testing.assert_array_equal(dataset.read(1), codes[..., 0])


def test_a_server_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(AnchorError, match=r"^http://127\.0\.0\.1:9/t\.tiff: .*check the host"),
        opened("http://127.0.0.1:9/t.tiff"),
    ):
        pass


def test_a_signature_stays_out_of_messages(server: FileServer) -> None:
    for act in (lambda at: opened(at).__enter__(), lambda at: fetch(at, Path("never"))):
        with pytest.raises(AnchorError, match=r"/none\.tiff: ") as caught:
            act(f"{server.url}/bk/none.tiff?X-Signature=secret")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["down.vrt", "down.vrt?x=1", "sly.tiff"])
def test_a_vrt_from_the_network_is_not_followed(server: FileServer, name: str) -> None:
    with (
        pytest.raises(AnchorError, match=r"(down\.vrt: a \.vrt is not followed|sly\.tiff: GDAL cannot open it)"),
        opened(address(server, "http", name)),
    ):
        pass
    assert not [request for request in server.requests if "down.tiff" in request.path]


def test_local_files_that_are_missing_no_raster_or_cut_are_named(tmp_path: Path, codes: Codes) -> None:
    with pytest.raises(AnchorError, match=r"none\.tif: no such file"), opened(str(tmp_path / "none.tif")):
        pass
    (tmp_path / "text.tif").write_text("text")
    with (
        pytest.raises(AnchorError, match=r"text\.tif: GDAL cannot open it .*give an AlphaEarth GeoTIFF"),
        opened(str(tmp_path / "text.tif")),
    ):
        pass
    whole = write_raster(tmp_path / "cut.tif", codes, **PLACE).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 9 // 10])
    with (
        pytest.raises(AnchorError, match=r"cut\.tif: cannot be read, it is damaged"),
        opened(str(tmp_path / "cut.tif")) as dataset,
    ):
        dataset.read()


def test_a_local_fingerprint_is_the_files_sha256(bucket: Path) -> None:
    file = bucket / "bk/2024/17N/up.tiff"
    assert fingerprint(str(file)) == sha256_file(file)


def test_a_remote_fingerprint_is_the_same_for_each_way_to_the_file_and_differs_for_another(
    server: FileServer, bucket: Path, codes: Codes
) -> None:
    names = ("http", "s3", "gs")
    [found] = {fingerprint(address(server, scheme, "up.tiff")) for scheme in names}
    assert found.startswith("layout-sha256:")
    assert len(found) == len("layout-sha256:") + 64
    changed = codes.copy()
    row, col = np.argwhere(codes[..., 0] != NODATA)[1000]
    changed[row, col] = -changed[row, col]
    write_cog(bucket / "bk" / "changed.tiff", changed, **PLACE)
    write_cog(bucket / "bk" / "moved.tiff", codes, west=PLACE["west"] + 10, north=PLACE["north"])
    write_cog(bucket / "bk" / "again.tiff", codes, **PLACE)
    others = [f"{server.url}/bk/{name}.tiff" for name in ("changed", "moved", "2024/17N/down")]
    assert len({found, *(fingerprint(other) for other in others)}) == 4
    with opened(f"{server.url}/bk/again.tiff") as dataset:
        assert fingerprint(f"{server.url}/bk/again.tiff", dataset) == found


def test_a_remote_fingerprint_covers_every_band(server: FileServer, bucket: Path, codes: Codes) -> None:
    changed = codes.copy()
    changed[codes[..., 63] != NODATA, 63] = 0
    found = set()
    for name, values in (("all", codes), ("last", changed)):
        write_cog(bucket / "bk" / f"{name}.tiff", values, factors=(), **PLACE)
        found.add(fingerprint(f"{server.url}/bk/{name}.tiff"))
    assert len(found) == 2


def test_a_file_without_a_place_opens_without_a_warning(tmp_path: Path) -> None:
    import rasterio

    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(tmp_path / "t.tif", "w", driver="GTiff", dtype="int8", count=1, height=8, width=8),
    ):
        pass
    with opened(str(tmp_path / "t.tif")) as dataset:
        assert dataset.crs is None


def test_the_fingerprint_of_a_vrt_is_that_of_the_pixels_too(tmp_path: Path, codes: Codes) -> None:
    write_cog(tmp_path / "t.tiff", codes, bottom_up=True, **PLACE)
    vrt = str(write_north_up_vrt(tmp_path / "t.vrt", tmp_path / "t.tiff"))
    first = fingerprint(vrt)
    assert first.startswith("vrt-sha256:")
    write_cog(tmp_path / "t.tiff", codes[::-1], bottom_up=True, **PLACE)
    assert fingerprint(vrt) != first
    (tmp_path / "t.tiff").unlink()
    with pytest.raises(AnchorError, match=r"t\.vrt: "):
        fingerprint(vrt)


def test_a_file_is_fetched_whole_after_a_busy_answer(server: FileServer, bucket: Path, tmp_path: Path) -> None:
    source = bucket / "bk/2024/17N/up.tiff"
    server.answers["/bk/2024/17N/up.tiff"] = [503, 429]
    fetch(address(server, "http", "up.tiff"), tmp_path / "copy")
    assert sha256_file(tmp_path / "copy") == sha256_file(source)
    assert [request.user_agent for request in server.requests] == [USER_AGENT] * 3


@pytest.mark.parametrize(("status", "requests"), [(403, 1), (404, 1), (503, 5)])
def test_a_fetch_that_fails_names_the_status_and_leaves_nothing(
    server: FileServer, tmp_path: Path, status: int, requests: int
) -> None:
    server.answers["/no"] = [status] * 9
    with pytest.raises(AnchorError, match=rf"{server.url}/no: cannot be fetched \(HTTP {status}; "):
        fetch(f"{server.url}/no", tmp_path / "copy")
    assert not list(tmp_path.iterdir())
    assert len(server.requests) == requests


def test_a_fetch_that_is_cut_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.cut.add("/bk/2024/17N/up.tiff")
    with pytest.raises(AnchorError, match=r"up\.tiff: cannot be fetched \(\d+ of \d+ bytes came"):
        fetch(address(server, "http", "up.tiff"), tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_a_bucket_address_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match=r"s3://b/i\.parquet: only http:// and https:// .*give its https://"):
        fetch("s3://b/i.parquet", tmp_path / "copy")

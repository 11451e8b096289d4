"""Where a source lies: a path on disk, or an address; opening, fingerprints, fetching."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusar_edge import __version__
from fusar_edge.errors import AnchorError
from fusar_edge.manifest import output_file, sha256_file, sha256_text

USER_AGENT = f"fusar-edge/{__version__}"
"""data.source.coop answers 403 to the one that urllib sends."""
RETRY_DELAY_S = 1.0
RETRIES = 4
TIMEOUT_S = 60
CACHE_BYTES = 128 << 20
"""GDAL's block cache; its own default is 5 % of the machine's memory."""

_PREFIXES = {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/"}
_REMOTE_VSI = re.compile(r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)(_streaming)?[/?]")
_REMOTE: dict[str, str | int | float | bool] = {
    "GDAL_HTTP_USERAGENT": USER_AGENT,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # a folder of the published files lists thousands
    "GDAL_HTTP_MAX_RETRY": RETRIES,  # of 429, 500, 502, 503, 504 and broken connections, each after twice the delay
    "GDAL_HTTP_RETRY_DELAY": RETRY_DELAY_S,
    "GDAL_HTTP_CONNECTTIMEOUT": TIMEOUT_S,
    "GDAL_HTTP_LOW_SPEED_TIME": TIMEOUT_S,  # a connection that stands still for so long is given up
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": True,
    "GDAL_HTTP_MULTIPLEX": True,
    "GDAL_INGESTED_BYTES_AT_OPEN": 65536,  # the header of a tile in one request, not in steps of 16 KiB
}
_CREDENTIALS = {
    "AWS_NO_SIGN_REQUEST": (
        "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_REQUEST_PAYER",
    ),
    "GS_NO_SIGN_REQUEST": (
        "GS_ACCESS_KEY_ID", "GS_OAUTH2_REFRESH_TOKEN", "GS_OAUTH2_PRIVATE_KEY", "GS_OAUTH2_PRIVATE_KEY_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS", "GS_USER_PROJECT",
    ),
}  # fmt: skip


def is_remote(location: str) -> bool:
    """True where reading it takes a network: http(s)://, s3://, gs://, and GDAL's own /vsicurl/, /vsis3/, ..."""
    return _scheme(location) in _PREFIXES or _REMOTE_VSI.search(location) is not None


def name_of(location: str) -> str:
    """The last part, without a query string: what a manifest calls the source."""
    return shown(location).rstrip("/").rpartition("/")[2]


def shown(location: str) -> str:
    """The location as messages show it: a remote one without its query string, which may hold a signature."""
    return re.split(r"(?<!/vsicurl)\?", location, maxsplit=1)[0] if is_remote(location) else location


def gdal_path(location: str) -> str:
    """What GDAL opens: /vsicurl/https://..., /vsis3/BUCKET/KEY, /vsigs/BUCKET/KEY; paths and /vsi... as they are.

    AnchorError for another scheme.
    """
    scheme = _scheme(location)
    if scheme is None or location.startswith("/vsi"):
        return location
    if scheme not in _PREFIXES:
        raise AnchorError(f"{location}: cannot read {scheme}://; give a path, or https://, http://, s3:// or gs://")
    rest = location.partition("://")[2]
    return _PREFIXES[scheme] + (f"{scheme}://{rest}" if scheme.startswith("http") else rest)


def gdal_settings(location: str | None = None) -> dict[str, str | int | float | bool]:
    """Options for `rasterio.Env` to read `location`, or a local file (None).

    s3:// and gs:// are read unsigned unless the environment holds credentials; region and endpoint are GDAL's own
    variables (AWS_REGION, AWS_S3_ENDPOINT, ...). What the environment sets is left out here: it wins.
    """
    settings: dict[str, str | int | float | bool] = {"GDAL_CACHEMAX": CACHE_BYTES}  # rasterio takes an int as bytes
    if location is not None and is_remote(location):
        settings |= _REMOTE
        settings |= {name: True for name, given in _CREDENTIALS.items() if not any(v in os.environ for v in given)}
    return {name: value for name, value in settings.items() if name not in os.environ}


@contextmanager
def opened(location: str, *, overview: int | None = None) -> Iterator[Any]:
    """An open rasterio dataset, in a GDAL environment that holds as long as it; `overview`: which of its levels to read
    in its place, 0 the finest.

    AnchorError names the location and what to check, also for errors while reading in the `with` block. A remote
    location is opened as GeoTIFF and nothing else: a .vrt from the network could name any file or host.
    """
    import rasterio

    path, remote = gdal_path(location), is_remote(location)
    if remote and name_of(location).lower().endswith(".vrt"):
        raise AnchorError(
            f"{shown(location)}: a .vrt is not followed over the network, it can name any file or host; "
            "give the .tiff beside it (bottom-up files are read as they are)"
        )
    if not path.startswith("/vsi") and not Path(path).is_file():
        raise AnchorError(f"{location}: no such file; give an AlphaEarth GeoTIFF, by path or address")
    options = {} if overview is None else {"OVERVIEW_LEVEL": overview}
    with rasterio.Env(**gdal_settings(location)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                dataset = rasterio.open(path, driver="GTiff" if remote else None, **options)
        except rasterio.errors.RasterioError as problem:
            raise AnchorError(f"{shown(location)}: GDAL cannot open it ({_reason(problem, location)})") from None
        try:
            with dataset:
                yield dataset
        except rasterio.errors.RasterioError as problem:
            reason = problem.__cause__ or problem
            fault = "the connection failed, or it is damaged" if remote else "it is damaged or truncated"
            raise AnchorError(f"{shown(location)}: cannot be read, {fault} ({reason})") from None


def fingerprint(location: str, dataset: Any = None) -> str:
    """What a manifest records for a source: equal for equal files, deterministic.

    A local file: the hex SHA-256 of its bytes. A local .vrt: `vrt-sha256:` over its own hash and those of the files it
    names. A remote GeoTIFF: `layout-sha256:` over size, transform, CRS, type, and offset and length in the file of
    every full-resolution block of every band, as its header lists them; hashing the bytes would download gigabytes.
    Thousands of compressed lengths differ as soon as the pixels do, so this tells one tile, year or version from
    another; it does not prove the bytes (a change that keeps every compressed length is not seen, nor is damage).

    `dataset`: the location opened already, by `opened`.
    """
    if dataset is None and (is_remote(location) or location.startswith("/vsi") or _is_vrt(location)):
        with opened(location) as dataset:
            return fingerprint(location, dataset)
    if is_remote(location) or location.startswith("/vsi"):
        return f"layout-sha256:{_layout_hash(location, dataset)}"
    if _is_vrt(location):
        missing = [name for name in dataset.files if not Path(name).is_file()]
        if missing or len(dataset.files) < 2:
            named = missing[0] if missing else "no file on disk"
            raise AnchorError(f"{location}: it names {named}; give that GeoTIFF itself, or a .vrt of local files")
        return f"vrt-sha256:{sha256_text(' '.join(sha256_file(Path(name)) for name in dataset.files))}"
    return sha256_file(Path(location))


def fetch(url: str, path: Path) -> None:
    """Download a small file from http(s):// to `path`, which appears whole or not at all and is replaced if there.

    AnchorError names the address and the status. Answers 429 and 5xx, and broken connections, are tried again.
    """
    if _scheme(url) not in ("http", "https"):
        raise AnchorError(f"{shown(url)}: only http:// and https:// are fetched; give its https:// form, or a copy")
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    for attempt in range(RETRIES + 1):
        try:
            with output_file(path, force=True) as work:
                _download(request, work)
            return
        except urllib.error.HTTPError as problem:
            problem.close()
            again, reason = problem.code == 429 or problem.code >= 500, _advice(problem.code, url)
        except (OSError, http.client.HTTPException, ValueError) as problem:  # ValueError: what is no address
            cause = getattr(problem, "reason", problem)
            again, reason = isinstance(cause, ConnectionError), f"{cause}; check the address and the network"
        if not again or attempt == RETRIES:
            raise AnchorError(f"{shown(url)}: cannot be fetched ({reason})")
        time.sleep(RETRY_DELAY_S * 2**attempt)


def _download(request: urllib.request.Request, path: Path) -> None:
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, open(path, "wb") as file:
        while block := answer.read(1 << 20):
            file.write(block)
        length = answer.headers.get("Content-Length")
        if length is not None and file.tell() != int(length):
            raise ConnectionError(f"{file.tell()} of {length} bytes came")


def _scheme(location: str) -> str | None:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    return found[1].lower() if found else None


def _is_vrt(location: str) -> bool:
    return name_of(location).lower().endswith(".vrt")


def _layout_hash(location: str, dataset: Any) -> str:
    if dataset.driver != "GTiff":
        raise AnchorError(f"{shown(location)}: it is {dataset.driver}; give the GeoTIFF itself")
    digest = hashlib.sha256()
    crs = None if dataset.crs is None else dataset.crs.to_epsg() or dataset.crs.to_wkt()
    header = (dataset.width, dataset.height, tuple(dataset.transform)[:6], crs, dataset.dtypes)
    digest.update(repr(header).encode())
    height, width = dataset.block_shapes[0]
    rows, cols = range(-(-dataset.height // height)), range(-(-dataset.width // width))
    for band in dataset.indexes:
        for row in rows:
            for col in cols:
                offset = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
                size = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
                digest.update(f"{offset},{size};".encode())
    return digest.hexdigest()


def _reason(problem: Exception, location: str) -> str:
    """GDAL's words and what to do about them."""
    words = str(problem.__cause__ or problem)
    if found := re.search(r"HTTP response code: (\d+)", words):
        return _advice(int(found[1]), location)
    if "CURL error" in words:
        return f"{words}; check the host's name and the network"
    return f"{words}; give an AlphaEarth GeoTIFF as published"


def _advice(status: int, location: str) -> str:
    remedies = {
        "s3": "unsigned requests are refused there: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        "gs": "unsigned requests are refused there: set GOOGLE_APPLICATION_CREDENTIALS, and GS_USER_PROJECT if you pay",
    }
    if status in (401, 403):
        refused = "the server refuses it: check the address, or give one with a signature"
        return f"HTTP {status}; {remedies.get(_scheme(location) or '', refused)}"
    if status in (404, 410):
        return f"HTTP {status}; nothing is there: check bucket, folder and name against the index"
    return f"HTTP {status}; try again later, or give a copy on disk"

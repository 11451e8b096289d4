"""Files that no service takes: cut, damaged, of another kind, too much, or made to do harm; the same for a seed."""

from __future__ import annotations

import io
import random
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TAGS = {
    "width": 256, "height": 257, "bits": 258, "compression": 259, "samples": 277, "rows_per_strip": 278, "planar": 284,
    "sample_format": 339, "strip_offsets": 273, "strip_bytes": 279, "tile_width": 322, "tile_height": 323,
    "tile_offsets": 324, "tile_bytes": 325, "scale": 33550, "geokeys": 34735, "gdal": 42112,
}  # fmt: skip
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 11: 4, 12: 8, 16: 8}
HOSTILE_NAMES = (
    "../../../etc/passwd", "..\\..\\boot.ini", "/dev/null", "a" * 5000 + ".tif", "", ".", "..", ".hidden.tif",
    "x\x00y.tif", "x\ny.tif", "x;rm -rf ~.tif", "$(id).tif", "`id`.tif", "%2e%2e%2fx.tif", "con.tif", "x.tif.msk",
    "x.tif.aux.xml", "/vsicurl/http://localhost/x.tif", "GTIFF_DIR:1:/etc/passwd", "HDF5:x", "<svg onload=x>.tif",
    "\u202efit.exe", "\ud800.tif", "é" * 400, "船舶.tif", "x.TIFF", "x.vrt", "x.zip", "...tif", "a/b/c.tif", "|sh",
    "-rf.tif",
)  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    """One file and the name that its sender gives it."""

    kind: str
    name: str
    data: bytes


def malformed_files(count: int, seed: int = 0) -> Iterator[Malformed]:
    """`count` files, each malformed for sure: every fixed one first, then random cuts and damage of good files."""
    chance = random.Random(seed)
    fixed = _fixed()
    for number in range(count):
        kind, data = fixed[number] if number < len(fixed) else _random(chance)
        hostile = number % 3 == 0
        yield Malformed(kind, chance.choice(HOSTILE_NAMES) if hostile else f"scene-{number}.tif", data)


@cache
def _fixed() -> list[tuple[str, bytes]]:
    return [*_other_formats(), *_refused_rasters(), *_patched(), *_bombs()]


@cache
def good_files() -> dict[str, bytes]:
    """Layouts of one good scene."""
    speckle = np.random.default_rng(0).gamma(4.0, 0.01, (200, 240)).astype(np.float32)
    return {
        "strips": geotiff(speckle),
        "deflate": geotiff(speckle, compress="deflate"),
        "tiles": geotiff(speckle, compress="deflate", tiled=True, blockxsize=64, blockysize=64),
        "lzw": geotiff(speckle, compress="lzw", predictor=3),
        "bigtiff": geotiff(speckle, compress="zstd", tiled=True, blockxsize=64, blockysize=64, BIGTIFF="YES"),
        "big-endian": geotiff(speckle, ENDIANNESS="BIG"),
        "cog": geotiff(np.tile(speckle, (3, 3)), driver="COG", compress="deflate", blocksize=128),
    }


def geotiff(array: Any, *, tags: dict[str, str] | None = None, nowhere: bool = False, **profile: Any) -> bytes:
    """A GeoTIFF of 10 m pixels in EPSG:32611, as bytes."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.transform import Affine

    bands = np.asarray(array)
    bands = bands if bands.ndim == 3 else bands[None]
    place = {} if nowhere else {"crs": "EPSG:32611", "transform": Affine(10, 0, 380_000, 0, -10, 3_735_000)}
    form = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = Path(folder) / "s.tif"
        with rasterio.open(path, "w", **{**form, "dtype": bands.dtype, **place, **profile}) as file:
            file.write(bands)
            file.update_tags(**(tags or {}))
        return path.read_bytes()


def patched(data: bytes, tag: str, value: int, *, count: int | None = None, kind: int | None = None) -> bytes:
    """The same little-endian classic TIFF with another value (or count, or type) of a tag of its first directory."""
    changed = bytearray(data)
    at = _entry(data, TAGS[tag])
    if kind is not None:
        struct.pack_into("<H", changed, at + 2, kind)
    if count is not None:
        struct.pack_into("<I", changed, at + 4, count)
    was_kind, was_count = struct.unpack_from("<HI", data, at + 2)
    if was_count * _SIZES[was_kind] > 4 and count is None:  # the list's first element
        (at,) = struct.unpack_from("<I", data, at + 8)
        struct.pack_into({3: "<H", 4: "<I"}.get(was_kind, "<I"), changed, at, value)
    else:
        struct.pack_into("<H" if value < 1 << 16 and was_kind == 3 else "<I", changed, at + 8, value)
        if value >= 1 << 16 and was_kind == 3:
            struct.pack_into("<H", changed, at + 2, 4)
    return bytes(changed)


def _entry(data: bytes, tag: int) -> int:
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    for at in range(first + 2, first + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            return at
    raise KeyError(tag)


def _other_formats() -> Iterator[tuple[str, bytes]]:
    good = good_files()["deflate"]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("s.tif"), good)  # of 1980: the same bytes each time
    vrt = (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        "<SourceFilename>{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    yield "empty", b""
    yield "one byte", b"I"
    yield "magic alone", b"II*\0"
    yield "header alone", b"II*\0\x08\0\0\0"
    yield "zip named .tif", packed.getvalue()
    yield "gzip", zlib.compress(good)
    yield "vrt of a local file", vrt.format("/etc/passwd").encode()
    yield "vrt of a host", vrt.format("/vsicurl/http://127.0.0.1:1/s.tif").encode()
    yield "vrt after the magic", b"II*\0" + vrt.format("/etc/passwd").encode()
    yield "gdal wms", b"<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1/</ServerUrl></Service></GDAL_WMS>"
    yield "gdal wmts", b"<GDAL_WMTS><GetCapabilitiesUrl>http://127.0.0.1/</GetCapabilitiesUrl></GDAL_WMTS>"
    yield "gdal gti", b"<GDALTileIndexDataset><IndexDataset>/etc/passwd</IndexDataset></GDALTileIndexDataset>"
    yield "a path", b"/vsicurl/http://127.0.0.1:1/s.tif"
    yield "png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff\x08\0\0\0\0"
    yield "jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(64)
    yield "jpeg 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(512)
    yield "nitf", b"NITF02.10" + bytes(512)
    yield "elf", b"\x7fELF" + bytes(256)
    yield "json", b'{"type": "Feature"}'
    yield "html", b"<!doctype html><script>alert(1)</script>"
    yield "xml entities", b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><VRTDataset>&a;</VRTDataset>'
    yield "tar", b"s.tif".ljust(257, b"\0") + b"ustar\0" + bytes(256)
    yield "old magic", b"II+\0" + good[4:]


def _refused_rasters() -> Iterator[tuple[str, bytes]]:
    """Good TIFFs that are no scenes."""
    from rasterio.transform import Affine

    speckle = np.random.default_rng(1).gamma(4.0, 0.01, (64, 64)).astype(np.float32)
    yield "complex64", geotiff(speckle.astype(np.complex64))
    yield "complex128", geotiff(speckle.astype(np.complex128))
    yield "complex int16", geotiff(speckle.astype(np.complex64), dtype="complex_int16")
    yield "uint16 without calibration", geotiff((speckle * 1000).astype(np.uint16))
    yield "one bit", geotiff((speckle > 0.03).astype(np.uint8), NBITS=1)
    yield "no place", geotiff(speckle, nowhere=True)
    yield "no crs", geotiff(speckle, crs=None)
    yield "no data", geotiff(np.full((64, 64), np.nan, np.float32))
    yield "not of this world", geotiff(speckle, transform=Affine(10, 0, 1e12, 0, -10, 1e12))
    yield "folded", geotiff(speckle, transform=Affine(10, 10, 0, 10, 10, 0))
    yield "digital numbers", geotiff(speckle * 1e6)
    yield "40 bands", geotiff(np.repeat(speckle[None], 40, 0))
    yield "lzma", geotiff(speckle, compress="lzma")
    yield "lerc", geotiff(speckle, compress="lerc")


def _patched() -> Iterator[tuple[str, bytes]]:
    strips, tiles = good_files()["deflate"], good_files()["tiles"]
    for tag, values in {
        "width": (0, 1 << 31, 0xFFFFFFFF, 65535),
        "height": (0, 1 << 31, 0xFFFFFFFF, 65535),
        "bits": (0, 1, 3, 7, 128, 65535),
        "compression": (0, 2, 6, 34712, 65000),
        "samples": (0, 33, 65535),
        "sample_format": (5, 6),
        "rows_per_strip": (0,),
        "strip_offsets": (0xFFFFFFFF, 1 << 30),
        "strip_bytes": (0xFFFFFFFF, 1 << 30),
    }.items():
        for value in values:
            yield f"{tag} {value}", patched(strips, tag, value)
    for tag, values in {
        "tile_width": (0, 65535, 0xFFFFFFF0),
        "tile_height": (0, 65535, 0xFFFFFFF0),
        "tile_offsets": (0xFFFFFFFF, 1 << 30),
        "tile_bytes": (0xFFFFFFFF, 1 << 30),
    }.items():
        for value in values:
            yield f"{tag} {value}", patched(tiles, tag, value)
    for tag in ("tile_offsets", "tile_bytes", "geokeys", "scale"):
        for count in (1 << 28, 0xFFFFFFFF):
            yield f"{tag} of {count} values", patched(tiles, tag, 8, count=count)
    yield "lists of one block", patched(patched(tiles, "tile_offsets", 8, count=1), "tile_bytes", 8, count=1)
    yield "width of text", patched(strips, "width", 64, kind=2)
    yield "planes that are not there", patched(geotiff(np.ones((3, 64, 64), np.uint8)), "planar", 2)
    (first,) = struct.unpack_from("<I", strips, 4)
    for offset in (0, 1, 0xFFFFFFFF, len(strips) - 1):
        yield f"directory at {offset}", strips[:4] + struct.pack("<I", offset) + strips[8:]
    (entries,) = struct.unpack_from("<H", strips, first)
    end = first + 2 + 12 * entries
    for following in (first, 0xFFFFFFF0, 2):
        yield f"next directory at {following}", strips[:end] + struct.pack("<I", following) + strips[end + 4 :]
    for number in (0, 65535):
        yield f"{number} tags", strips[:first] + struct.pack("<H", number) + strips[first + 2 :]
    cog = good_files()["cog"]
    for tag in ("tile_offsets", "tile_bytes"):
        yield f"cog, {tag}", patched(cog, tag, 0xFFFFFF00)
    yield "bigtiff of 4-byte offsets", good_files()["bigtiff"][:4] + b"\x04\0" + good_files()["bigtiff"][6:]


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Little that unpacks to much."""
    for side, compress in ((12_000, "deflate"), (12_000, "zstd"), (12_000, "lzw")):
        empty = np.zeros((side, side), np.uint8)
        yield f"{compress} bomb", geotiff(empty, compress=compress, tiled=True, blockxsize=512, blockysize=512)
    sparse: dict[str, Any] = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "SPARSE_OK": "TRUE",
        "compress": "deflate",
    }
    one = geotiff(np.zeros((64, 64), np.float32), **sparse)
    yield "a hole of 2^32 pixels", patched(patched(one, "width", 65536), "height", 65536)
    block = geotiff(np.zeros((64, 64), np.uint8), compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    for side in (16_384, 65_520):
        grown = block
        for tag in ("width", "height", "tile_width", "tile_height"):
            grown = patched(grown, tag, side)
        yield f"one block of {side} px", grown
    long = patched(patched(geotiff(np.zeros((64, 64), np.uint8)), "width", 1), "height", 0x7FFFFFFF)
    yield "2^31 lines of a pixel", patched(long, "rows_per_strip", 0x7FFFFFFF)
    yield "metadata of 8 MB", geotiff(np.ones((8, 8), np.float32), tags={"note": "x" * (8 << 20)})


def _random(chance: random.Random) -> tuple[str, bytes]:
    layout = chance.choice([*good_files()])
    data = good_files()[layout]
    if chance.random() < 0.6:
        length = chance.randrange(len(data) - 1)
        return f"{layout} cut at {length}", data[:length]
    if layout in ("strips", "big-endian", "lzw"):  # without a checksum damage may go unnoticed: cut out a part
        start = chance.randrange(len(data) // 2)
        return f"{layout} without {start}..", data[:start] + data[start + chance.randrange(400, 4000) :]
    layout = chance.choice(["deflate", "tiles"])
    data = good_files()[layout]
    start = chance.randrange(len(data) // 2, len(data) - 600)
    noise = bytes(byte ^ chance.randrange(1, 256) for byte in data[start : start + 500])
    return f"{layout} with noise at {start}", data[:start] + noise + data[start + 500 :]

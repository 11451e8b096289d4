"""Files that nobody vouches for: what is refused, and the child process that reads them first."""

from __future__ import annotations

import stat
from pathlib import Path

from fusar_edge.errors import SceneError
from fusar_edge.sar.scene import LARGEST_BLOCK_MIB
from fusar_edge.service.intake.probe import Facts, Prober
from fusar_edge.service.intake.tiff_header import Directory, read_header
from fusar_edge.service.settings import LimitSettings

LONGEST_SIDE_PX = 1_000_000
"""The plan of tiles grows with a scene's sides, not only with its area."""
MOST_BANDS = 32
SMALL_BYTES = 64 << 20
"""Whatever unpacks to less than this is no bomb: a calm simulated sea packs a thousandfold."""
COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate", 50000: "ZSTD"}
"""Decoders that an untrusted file may reach. LZMA allocates what the file demands; the rest is not used for SAR."""


def check_header(path: Path, name: str, limits: LimitSettings) -> Directory:
    """Bytes, pixels, blocks, types and unpacked size as the header states them; SceneError. Opens no decoder."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise SceneError(f"{name} is no regular file; links, folders and devices are not followed: give a file")
    if status.st_size > limits.upload_mib << 20:
        raise SceneError(f"{name} has {status.st_size >> 20} MiB; at most {limits.upload_mib} are taken: send parts")
    directories = read_header(path, name)
    scene = directories[0]
    if scene.sample_format in (5, 6):
        raise SceneError(f"{name} holds complex values; detect it first (|z|^2) and geocode it")
    if scene.bits not in (8, 16, 32, 64) or scene.samples > MOST_BANDS:
        raise SceneError(
            f"{name} has {scene.samples} bands of {scene.bits} bits; allowed are 1 to {MOST_BANDS} of 8, 16, 32 or 64"
        )
    for directory in directories:
        _check_directory(directory, name, status.st_size, limits)
    return scene


def _check_directory(found: Directory, name: str, size_bytes: int, limits: LimitSettings) -> None:
    shown = f"{name} ({found.width} x {found.height} px)"
    if found.width * found.height > limits.pixels or max(found.width, found.height) > LONGEST_SIDE_PX:
        raise SceneError(
            f"{shown}: at most {limits.pixels} pixels and {LONGEST_SIDE_PX} a side are taken; cut it into parts"
        )
    if found.compression not in COMPRESSIONS:
        allowed = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise SceneError(
            f"{shown}: compression {found.compression} is not taken, but {allowed}: gdal_translate -co COMPRESS=LZW"
        )
    # One uncompressed strip is read line by line; everything else is held as whole blocks.
    if (found.tiled or found.compression != 1) and found.block_bytes > LARGEST_BLOCK_MIB << 20:
        raise SceneError(
            f"{shown}: its blocks are {found.block_width} x {found.block_height} px ({found.block_bytes >> 20} MiB; at "
            f"most {LARGEST_BLOCK_MIB}); rewrite it with gdal_translate -co TILED=YES"
        )
    ratio = found.raw_bytes / max(size_bytes, 1)
    if found.raw_bytes > SMALL_BYTES and ratio > limits.decompression_ratio:
        raise SceneError(
            f"{shown} unpacks to {ratio:.0f} times its size; at most {limits.decompression_ratio} is taken: cut its "
            "empty parts away, or raise limits.decompression_ratio"
        )


def check(path: Path, *, name: str, limits: LimitSettings, prober: Prober, located: bool = True) -> Facts:
    """Everything that is asked of a file before it is accepted; SceneError, without the path, says what is wrong.

    First the header in Python, then a child process opens it with GDAL as the pipeline will, and reads samples of it
    (all of it where it is small): what crashes or starves GDAL takes the child with it, not the service.
    """
    check_header(path, name, limits)
    return prober.facts(path, name=name, located=located)

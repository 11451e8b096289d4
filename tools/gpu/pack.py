"""Packs folders into checksummed pieces that fit a transfer of limited size.

    python tools/gpu/pack.py tools/gpu/out/store/session tools/gpu/out/store/tensorrt --out tools/gpu/out/pieces

Each folder NAME becomes NAME.tar.zst, cut into pieces of --piece-mib. Piece number i lies in a folder of its own,
OUT/NAME-i, beside NAME.sha256, the list of all pieces (as sha256sum writes it): carry one such folder a transfer and
run `unpack.sh` on it there. The first holds zstd too, for a machine without it. Needs the zstd program.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

LARGEST_MIB = 64
"""What one transfer takes, the project itself included."""
LEVEL = 12
"""zstd level. TensorRT 8.6, measured: 12 gives 432 MB in 2 minutes; 19 is 7 % smaller and takes ten times as long."""
WINDOW = 27
"""Logarithm of zstd's window; the largest that it unpacks without being told."""


class PackError(Exception):
    """What was given cannot be packed."""


def pack(folder: Path, out: Path, piece_mib: float = 30, level: int = LEVEL) -> list[Path]:
    """Pack `folder`; returns the folders to carry, one a transfer. PackError names what does not fit."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise PackError(f"{folder} is not a folder with something in it; gather.py makes what is to be packed")
    if not 0 < piece_mib <= LARGEST_MIB:
        raise PackError(
            f"a piece of {piece_mib} MiB was asked for; a transfer takes more than 0 and at most {LARGEST_MIB}"
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{folder.name}.") as work:
        archive = Path(work) / f"{folder.name}.tar.zst"
        compress(folder, archive, level)
        carried = split(archive, Path(work), int(piece_mib * 2**20))
        put_zstd(carried[0])
        for old in out.glob(f"{folder.name}-[0-9][0-9]"):
            shutil.rmtree(old)
        return [path.rename(out / path.name) for path in carried]


def compress(folder: Path, archive: Path, level: int = LEVEL) -> None:
    """tar through zstd. Owners and times are left out, so that the same files give the same pieces."""
    command = ["zstd", "-q", f"-{level}", f"--long={WINDOW}", "-T0", "-o", str(archive)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        with tarfile.open(fileobj=zstd.stdin, mode="w|") as tar:
            for path in sorted(folder.rglob("*")):
                tar.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_anonymous)
        zstd.stdin.close()
    if zstd.returncode:
        raise PackError(f"zstd ended with {zstd.returncode} on {folder}")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def split(archive: Path, out: Path, piece_bytes: int) -> list[Path]:
    """Cut `archive` into OUT/NAME-00/NAME.00, ...; the list of SHA-256 goes beside each piece."""
    name, lines = archive.name.removesuffix(".tar.zst"), list[str]()
    carried: list[Path] = []
    with open(archive, "rb") as whole:
        while data := whole.read(piece_bytes):
            number = f"{len(carried):02}"
            folder = out / f"{name}-{number}"
            folder.mkdir()
            (folder / f"{name}.{number}").write_bytes(data)
            lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}.{number}\n")
            carried.append(folder)
    if len(carried) > 99:
        raise PackError(f"{name} needs {len(carried)} pieces of {piece_bytes} bytes; at most 99: ask for larger ones")
    for folder in carried:
        (folder / f"{name}.sha256").write_text("".join(lines))
    return carried


def put_zstd(folder: Path) -> None:
    """The zstd program and the libraries it needs but libc, for a machine that has none: about 1.5 MB."""
    program = shutil.which("zstd")
    assert program is not None  # compress() has run it
    (folder / "zstd").mkdir()
    shutil.copy(os.path.realpath(program), folder / "zstd" / "zstd")
    for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
        path = line.partition("=> ")[2].split(" (")[0]
        if path and not Path(path).name.startswith(("libc.", "libm.", "libpthread.", "ld-")):
            shutil.copy(os.path.realpath(path), folder / "zstd" / Path(path).name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--piece-mib", type=float, default=30, help="at most 64 less the project's own size (default 30)"
    )
    parser.add_argument("--level", type=int, default=LEVEL, choices=range(1, 20), metavar="1..19", help="of zstd")
    given = parser.parse_args(arguments)
    try:
        for folder in given.folder:
            carried = pack(folder, given.out, given.piece_mib, given.level)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            packed = sum(path.stat().st_size for place in carried for path in place.glob(f"{folder.name}.[0-9]*"))
            print(f"{folder.name}: {size / 2**20:.0f} MiB in {packed / 2**20:.0f} MiB, {len(carried)} transfers")
    except (PackError, FileNotFoundError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a folder holds and where it came from: `manifest.json`, hashes, and outputs that appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge import __version__
from fusar_edge.errors import InputError, OutputExistsError

FILENAME = "manifest.json"


class Manifest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The record beside every artefact."""

    stage: str
    """Verb that made the folder: simulate, convert, base, stage1, stage2, export, calibrate, build, anchors."""
    version: str = __version__
    """fusar-edge version."""
    recipe: str = ""
    """Full text of the recipe or spec, so that the folder explains itself."""
    inputs: dict[str, str] = {}
    """What it was made from: name -> SHA-256."""
    files: dict[str, str] = {}
    """Files of this folder, relative POSIX path -> SHA-256. Empty: not a sealed folder."""
    figures: dict[str, Any] = {}
    """What was measured while making it."""
    settings: dict[str, Any] = {}
    """What a reader of the folder needs to use it (image size, token ids, radiometry, ...)."""
    packages: dict[str, str] = {}
    """Versions of the packages that took part."""
    machine: str = ""
    """Processor and system."""
    seal: str = ""
    """SHA-256 of all the other fields, so that a change of any of them is found too. Written by `write_manifest`."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of every file below `folder` but its own manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / FILENAME)
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in paths}


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions; a package that is absent is left out."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json`, readable by a person."""
    manifest.machine = manifest.machine or f"{platform.machine()} {platform.system()} {os.cpu_count()} cpu"
    manifest.seal = _seal(manifest)
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / FILENAME).write_bytes(data + b"\n")


def read_manifest(folder: Path, error: type[InputError] = InputError) -> Manifest:
    """Read `folder/manifest.json`; raises `error` that names the file."""
    path = folder / FILENAME
    if not path.is_file():
        raise error(f"{folder} has no {FILENAME}: it is not a folder that fusar-edge made, or it is incomplete")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise error(f"{path}: {problem}") from None
    if manifest.seal and manifest.seal != _seal(manifest):
        raise error(f"{path} was changed: it is not what its seal says; copy the folder again or make it anew")
    return manifest


def _seal(manifest: Manifest) -> str:
    """Empty fields are left out, so that a field added later does not change the seal of what was written before it."""
    fields = {name: value for name, value in msgspec.structs.asdict(manifest).items() if value and name != "seal"}
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def verify_files(folder: Path, manifest: Manifest, error: type[InputError] = InputError) -> None:
    """Compare every file with its hash; raises `error` naming the first that is missing or changed."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise error(f"{path} is missing: the manifest lists it; copy the folder again")
        if sha256_file(path) != expected:
            raise error(f"{path} was changed: its SHA-256 is not the manifest's; copy the folder again or rebuild it")


def check_output(path: Path, force: bool) -> None:
    """Refuse an output that exists, before any work is done."""
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists: give another --out, or --force to replace it")


@contextlib.contextmanager
def output_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling folder that becomes `path` on success and vanishes on any error."""
    path = Path(path)
    check_output(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
        work.chmod(0o755)
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        work.rename(path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


@contextlib.contextmanager
def output_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix) that is renamed to it on success, removed on any error."""
    path = Path(path)
    check_output(path, force)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield work
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)

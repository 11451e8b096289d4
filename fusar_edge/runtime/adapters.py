"""Task adapters of a bundle: the LoRA beside the decoder's linears, one small file for each task.

    adapters/NAME.data   the branch's weights, float32, where the layout says; the same layout for all of a bundle
    adapters/NAME.json   what it is and where it came from (AdapterRecord)
    adapters/folds.npz   SmoothQuant's factors, where the base has them in its weights: one added later takes them too

Which one answers is a setting in manifest.json. A file that the manifest lists is never written again, so that every
change is one rename, that of the manifest: a process that is killed leaves the bundle as it was or as it is to be, and
at most a file that nobody reads. ONNX Runtime is handed the weights when it opens the graph (fusar_edge.runtime.ort).

An export and an INT8 folder hold the same files, with one adapter.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.errors import BundleError, InputError
from fusar_edge.manifest import FILENAME, Manifest, read_manifest, sha256_file, verify_files, write_manifest
from fusar_edge.runtime.bundle import (
    ADAPTERS,
    STAGE,
    TENSORRT,
    AdapterFacts,
    Bundle,
    BundleSettings,
    bundle_path,
    open_bundle,
)

FORMAT = 1
FOLDS = f"{ADAPTERS}/folds.npz"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NEW = ".adapters-new"
"""Where a manifest is written before it is renamed."""

Array = npt.NDArray[np.float32]


class Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a tensor of the branch is."""

    shape: tuple[int, int]
    """As it stands in the graph: [in, rank], [rank, out]."""
    offset: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def end(self) -> int:
        return self.offset + 4 * math.prod(self.shape)


class AdapterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NAME.json."""

    format: int = FORMAT
    name: str
    stage: str
    """That trained it: stage2; `official` where nothing says."""
    rank: int
    """Its own, the largest of its linears; the graph's is in `tensors`."""
    scale: dict[str, Any] = {}
    """r, lora_alpha, use_rslora and the patterns, as adapter_config.json has them; folded into the weights."""
    targets: tuple[str, ...]
    """Linears of the language model that it changes."""
    sources: dict[str, str]
    """File of its checkpoint -> SHA-256."""
    base: dict[str, str]
    """File of the base that it was made for -> SHA-256."""
    tlm_sha256: str
    vision_sha256: str
    """Of the tower's LoRA, which is merged into vision.onnx; "": it has none."""
    recipe: str
    """Text of the model recipe that reads the checkpoint."""
    tensors: dict[str, Placed]
    """The layout of NAME.data: constant of decoder.onnx -> where it is."""

    @property
    def branch_rank(self) -> int:
        """Of the graph."""
        return next(iter(self.tensors.values())).shape[1]

    @property
    def bytes(self) -> int:
        return max(placed.end for placed in self.tensors.values())


def check_name(name: str) -> str:
    """InputError for what is no name of a file on every system."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of an adapter: allowed are small letters, digits, '.', '_' and '-', at most 64, "
            "beginning with a letter or a digit"
        )
    return name


def data_name(name: str) -> str:
    """As decoder.onnx refers to it."""
    return f"{ADAPTERS}/{name}.data"


def record_name(name: str) -> str:
    return f"{ADAPTERS}/{name}.json"


def read_record(folder: Path, name: str) -> AdapterRecord:
    """BundleError that names the file."""
    path = folder / record_name(name)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=AdapterRecord)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the folder again") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise BundleError(f"{path}: {problem}; build the bundle again") from None
    if record.format != FORMAT or record.name != name or not record.tensors:
        raise BundleError(f"{path} is of format {record.format} and named {record.name!r}; copy the folder again")
    return record


def read_tensors(folder: Path, name: str) -> dict[str, Array]:
    """Constant of the graph -> its value under this adapter. BundleError for a file of another size."""
    record, path = read_record(folder, name), folder / data_name(name)
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the folder again") from None
    if data.size != record.bytes:
        raise BundleError(f"{path} has {data.size} bytes, {record_name(name)} says {record.bytes}: copy it again")
    return {
        tensor: data[placed.offset : placed.end].view(np.float32).reshape(placed.shape)
        for tensor, placed in record.tensors.items()
    }


def names_in(manifest: Manifest) -> list[str]:
    """Adapters that a manifest lists."""
    found = [Path(name) for name in manifest.files if name.startswith(f"{ADAPTERS}/") and name.endswith(".json")]
    return sorted(path.stem for path in found)


def listed(bundle: Bundle) -> list[dict[str, Any]]:
    """What people want to know of each adapter."""
    facts = bundle.settings.adapters
    found = []
    for name in names_in(bundle.manifest):
        record = read_record(bundle.folder, name)
        found.append(
            {
                "name": name,
                "active": facts is not None and name == facts.active,
                "measured": facts is not None and name == facts.exported,
                "stage": record.stage,
                "rank": record.rank,
                "branch_rank": record.branch_rank,
                "targets": list(record.targets),
                "bytes": record.bytes,
                "sources": record.sources,
            }
        )
    return found


def use_adapter(bundle: str | Path, name: str) -> Bundle:
    """Have `name` answer from now on; a process that has the bundle open goes on as it is.

    InputError for a name that is not there, BundleError for a bundle that is not whole or cannot change its adapter.
    """
    with changing(bundle) as (folder, manifest, settings):
        facts = changeable(folder, settings)
        _known(folder, manifest, name)
        verify_files(folder, manifest, BundleError)
        if read_record(folder, name).tensors != read_record(folder, facts.active).tensors:
            raise BundleError(
                f"{folder / data_name(name)} has another layout than {data_name(facts.active)}: add it again"
            )
        manifest.settings["adapters"] = msgspec.to_builtins(msgspec.structs.replace(facts, active=name))
        commit(folder, manifest)
    return open_bundle(folder)


def remove_adapter(bundle: str | Path, name: str) -> Bundle:
    """Take an adapter out. InputError for the one in use, and for the one that the graph refers to."""
    with changing(bundle) as (folder, manifest, settings):
        facts = changeable(folder, settings)
        _known(folder, manifest, name)
        if name == facts.active:
            raise InputError(f"{name} is in use: fusar-edge bundle adapters use {folder} OTHER, then remove it")
        if name == facts.exported:
            raise InputError(
                f"{name} is the adapter that {folder} was exported and measured with, and its decoder.onnx refers to "
                "that file: it stays"
            )
        for file in (data_name(name), record_name(name)):
            del manifest.files[file]
        commit(folder, manifest)
        for file in (data_name(name), record_name(name)):
            (folder / file).unlink(missing_ok=True)
    return open_bundle(folder)


@contextmanager
def changing(bundle: str | Path) -> Iterator[tuple[Path, Manifest, BundleSettings]]:
    """Hold a bundle alone while its manifest is changed. BundleError where another process holds it."""
    folder = bundle_path(bundle)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BundleError(f"{folder} is being changed by another process: wait for it") from None
        manifest = read_manifest(folder, BundleError)
        if manifest.stage != STAGE:
            raise BundleError(f"{folder} is of stage {manifest.stage!r}: adapters are changed in what `build` made")
        try:
            settings = msgspec.convert(manifest.settings, BundleSettings)
        except msgspec.ValidationError as problem:
            raise BundleError(f"{folder / FILENAME}: settings: {problem}; build the bundle again") from None
        _swept(folder, manifest)
        yield folder, manifest, settings
    finally:
        os.close(handle)


def _swept(folder: Path, manifest: Manifest) -> None:
    """Remove what a process that was killed left in the folder: no file that counts is unlisted."""
    shutil.rmtree(folder / _NEW, ignore_errors=True)
    for path in (folder / ADAPTERS).glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif f"{ADAPTERS}/{path.name}" not in manifest.files:
            path.unlink()


def put_adapter(folder: Path, manifest: Manifest, record: AdapterRecord, data: Path) -> None:
    """Take `data`, a file on the same disk, as adapters/NAME.data and list it. The bundle must be held.

    Whatever stands under the name and is not listed was left by a process that was killed.
    """
    assert record_name(record.name) not in manifest.files
    write_record(folder, record)
    _synced(data)
    data.replace(folder / data_name(record.name))
    _synced(folder / record_name(record.name))
    for name in (data_name(record.name), record_name(record.name)):
        manifest.files[name] = sha256_file(folder / name)
    commit(folder, manifest)


def write_record(folder: Path, record: AdapterRecord) -> None:
    (folder / ADAPTERS).mkdir(exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(record), indent=2)
    (folder / record_name(record.name)).write_bytes(data + b"\n")


def commit(folder: Path, manifest: Manifest) -> None:
    """Seal the changed manifest and put it in the old one's place, in one step that the disk has seen."""
    staging = folder / _NEW
    staging.mkdir(exist_ok=True)
    write_manifest(staging, manifest)
    _synced(staging / FILENAME)
    _synced(folder / ADAPTERS)
    (staging / FILENAME).replace(folder / FILENAME)
    _synced(folder)
    shutil.rmtree(staging, ignore_errors=True)


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def changeable(folder: Path, settings: BundleSettings) -> AdapterFacts:
    """What can be changed; BundleError with the reason where nothing can."""
    if settings.adapters is None:
        raise BundleError(
            f"{folder} has no place for an adapter, its LoRA is merged into the weights: export the model with "
            "--adapter NAME and build it again"
        )
    if settings.engine == TENSORRT:
        raise BundleError(
            f"{folder} is a TensorRT bundle: the plan holds the weights of the adapter {settings.adapters.active}, and "
            "another file changes nothing: export with the other adapter and build a plan of it, on this device"
        )
    return settings.adapters


def _known(folder: Path, manifest: Manifest, name: str) -> None:
    names = names_in(manifest)
    if name not in names:
        raise InputError(f"{folder} has no adapter {name!r}; it has: {', '.join(names)}")

"""The calibration set as a list with hashes and licences, and the check that evaluation data are apart from it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fusar_edge.calib.tiles.choice import CalibrationSet, ChosenTile, Modality, Progress, pixels_sha256, relative_path
from fusar_edge.data.triplet_rows import Row, write_rows
from fusar_edge.data.triplets import read_triplets, triplets_by_image
from fusar_edge.errors import DataError
from fusar_edge.manifest import FILENAME, read_manifest, sha256_file
from fusar_edge.sar.image import grey_from_file
from fusar_edge.sar.radiometry import Radiometry

NOT_STATED = "not stated"
SIMULATED = "none needed: simulated data"

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _ListedTile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    part: Literal["ranges", "held_out"]
    image: str
    sha256: Sha256
    pixels_sha256: Sha256
    modality: Modality
    aef: str | None
    aef_sha256: Sha256 | None
    task: str | None
    question: str
    answer: str
    cluster: int
    licence: str
    source: str


def listing(chosen: CalibrationSet) -> list[Row]:
    """Every tile with its hashes, licence and source, ready for JSON; the same in any folder.

    `image` and `aef` are paths from the folder that the manifest's folder is in. `licence` and `source` are what that
    folder's manifest.json says; DataError where it was changed.
    """
    parts = {"ranges": chosen.tiles, "held_out": chosen.held_out}
    origins = {tile.manifest: _origin(tile.manifest) for tiles in parts.values() for tile in tiles}
    return [_row(part, tile) | origins[tile.manifest] for part, tiles in parts.items() for tile in tiles]


def data_hashes(manifests: Sequence[Path], tiles: Sequence[Path]) -> dict[str, str]:
    """Name -> SHA-256 of the triplet manifests and of every file that the set was taken from."""
    found = {f"data/{path.resolve().parent.name}/{path.name}": sha256_file(path) for path in manifests}
    folders = [path.resolve().parent for path in manifests]
    for tile in map(Path.resolve, tiles):
        folder = next((f for f in folders if tile.is_relative_to(f)), tile.parent)
        found[f"tile/{folder.name}/{tile.relative_to(folder).as_posix()}"] = sha256_file(tile)
    return found


def _row(part: str, tile: ChosenTile) -> Row:
    image, aef = tile.triplet.image, tile.triplet.aef
    return {
        "part": part,
        "image": _listed(image, tile.manifest),
        "sha256": sha256_file(image),
        "pixels_sha256": tile.pixels_sha256,
        "modality": tile.modality,
        "aef": None if aef is None else _listed(aef, tile.manifest),
        "aef_sha256": None if aef is None else sha256_file(aef),
        "task": tile.triplet.task,
        "question": tile.triplet.question,
        "answer": tile.triplet.answer,
        "cluster": tile.cluster,
    }


def _listed(path: Path, manifest: Path) -> str:
    folder = os.path.basename(os.path.abspath(manifest.parent))
    return posixpath.normpath(f"{folder}/{relative_path(path, manifest)}")


def _origin(manifest: Path) -> dict[str, str]:
    """Licence and source of the data set that a triplet manifest is of."""
    file = manifest.parent / FILENAME
    if manifest.name == FILENAME or not file.is_file():  # published data may give its own list that name
        return {"licence": NOT_STATED, "source": NOT_STATED}
    settings = read_manifest(manifest.parent, DataError).settings
    if settings.get("simulated"):
        settings = {"licence": SIMULATED, "source": settings.get("note", NOT_STATED)} | settings
    return {key: str(settings.get(key, NOT_STATED)) for key in ("licence", "source")}


def write_listing(path: Path, rows: Sequence[Row], *, force: bool = False) -> None:
    """JSONL, a tile a line. OutputExistsError unless `force`."""
    write_rows(path, rows, force=force)


def read_listing(path: Path) -> list[Row]:
    """What `write_listing` wrote; DataError names the line that is none."""
    advice = "a listing is written by `calibrate`, one JSON object a line: copy it again, or calibrate again"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror}); {advice}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(msgspec.to_builtins(msgspec.json.decode(line, type=_ListedTile)))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise DataError(f"{path}:{number}: {problem}; {advice}") from None
    if not rows:
        raise DataError(f"{path}: lists no tile; {advice}")
    return rows


def check_disjoint(
    listing_rows: Sequence[Mapping[str, Any]],
    data: Path,
    radiometry: Radiometry,
    progress: Progress | None = None,
) -> None:
    """Raise DataError where images of the evaluation manifest `data` are in the listing, by bytes or decoded pixels.

    Each image is read once, and decoded where its bytes are not listed. Another crop or a lossy copy of a tile is not
    found. `progress(done, total)` counts images.
    """
    files, pixels = ({row[key] for row in listing_rows} for key in ("sha256", "pixels_sha256"))
    seen = list(triplets_by_image(read_triplets(data)))
    shared = []
    for done, image in enumerate(seen, 1):
        if sha256_file(image) in files or pixels_sha256(grey_from_file(image, radiometry)) in pixels:
            shared.append(image)
        if progress:
            progress(done, len(seen))
    if shared:
        names = ", ".join(map(str, shared[:3])) + (", ..." if len(shared) > 3 else "")
        raise DataError(
            f"{data}: {len(shared)} of {len(seen)} images are also calibration tiles (ranges or held out): {names}. "
            "INT8 would be judged on what it was tuned on: evaluate on a manifest without them, or calibrate on data "
            "without them"
        )

"""STAC items that say where a scene is: from allowed hosts and folders alone."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from fusar_edge.errors import InputError
from fusar_edge.service.intake.download import Downloader, checked_url, shown
from fusar_edge.service.intake.intake import Intake
from fusar_edge.service.journal import SceneRow
from fusar_edge.service.settings import StacSettings

ITEM_BYTES = 4 << 20
POLARISATIONS = ("vv", "hh", "vh", "hv")
"""Most wanted first: ships and coasts stand out in co-polarised backscatter as the model was trained on."""
NOT_DATA = {"thumbnail", "overview", "metadata", "mask", "visual"}


class Asset(msgspec.Struct, frozen=True):
    """What is used of an asset; other fields are passed over."""

    href: str
    type: str | None = None
    roles: list[str] = []
    polarizations: list[str] | None = msgspec.field(default=None, name="sar:polarizations")


class Item(msgspec.Struct, frozen=True):
    """What is used of a STAC item, any version from 0.9."""

    id: str
    type: str
    stac_version: str
    assets: dict[str, Asset]
    properties: dict[str, Any] = {}
    links: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Fetched:
    """A scene of an item, on our disk or in an allowed folder."""

    path: Path
    owned: bool
    """Downloaded: ours to move. Else it lies below one of the roots."""
    name: str
    acquired: str | None
    submitted_as: str


def offer_item(intake: Intake, *, item: Any = None, href: str | None = None, **options: Any) -> tuple[SceneRow, bool]:
    """Fetch a scene by its item and offer it; `options` as of `Intake.offer`: tasks, label, priority, deadline."""
    found = fetch(intake, item=item, href=href)
    return intake.offer(
        found.path,
        name=found.name,
        source="stac",
        owned=found.owned,
        acquired=found.acquired,
        submitted_as=found.submitted_as,
        **options,
    )


def fetch(intake: Intake, *, item: Any = None, href: str | None = None) -> Fetched:
    """Resolve an item (a JSON object, or its address or path) and bring its data asset within reach.

    InputError for a host or folder that is not allowed, an item without a usable asset, a failed download; BusyError
    where there is no room for it. Slow: the caller gives it a thread of its own.
    """
    if (item is None) == (href is None):
        raise InputError("give either the item itself or its href")
    settings, download = intake.settings.stac, Downloader(intake)
    base: str | None = None
    if href is not None:
        base = _resolved(href, None)
        data = download.small(base, ITEM_BYTES) if _is_url(base) else _small(_local(base, settings))
        item = _decoded(data, shown(base) if _is_url(base) else Path(base).name)
    parsed = item_from_json(item)
    if base is None:
        base = next((str(link.get("href")) for link in parsed.links if link.get("rel") == "self"), None)
        base = None if base is None else _resolved(base, None)
    key, asset = scene_asset(parsed)
    place = _resolved(asset.href, base)
    if _is_url(place):
        path, owned, said = download.to_incoming(place), True, shown(place)
    else:
        if base is not None and _is_url(base):
            raise InputError(
                f"asset {key!r} of an item from {shown(base)} names a local file; only its host's are taken"
            )
        path, owned = _local(place, settings), False
        said = path.name
    return Fetched(path, owned, f"{parsed.id}_{key}.tif", acquired_from_item(parsed), said)


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(ITEM_BYTES + 1)
    if len(data) > ITEM_BYTES:
        raise InputError(f"{path.name} has more than {ITEM_BYTES >> 10} KiB: it is no STAC item")
    return data


def item_from_json(item: Any) -> Item:
    """InputError, with the place in it, where this is no STAC item."""
    try:
        parsed = msgspec.convert(item, Item)
    except msgspec.ValidationError as problem:
        raise InputError(f"this is no STAC item: {problem}") from None
    if parsed.type != "Feature":
        raise InputError(f"this is a STAC {parsed.type[:40]}; give an item (type Feature) of one scene")
    return parsed


def scene_asset(item: Item) -> tuple[str, Asset]:
    """The GeoTIFF of data: by polarisation where assets state one (field or key), else the first that is listed."""
    tiffs = {key: asset for key, asset in item.assets.items() if _is_tiff(asset) and not NOT_DATA & set(asset.roles)}
    chosen = {key: asset for key, asset in tiffs.items() if "data" in asset.roles} or tiffs
    if not chosen:
        held = ", ".join(f"{key} ({asset.type or 'no type'})" for key, asset in list(item.assets.items())[:8]) or "none"
        raise InputError(
            f"item {item.id[:80]!r} has no GeoTIFF asset of data (type image/tiff, role data); it has: {held[:300]}"
        )
    for wanted in POLARISATIONS:
        for key, asset in chosen.items():
            if wanted in _polarisations(key, asset):
                return key, asset
    return next(iter(chosen.items()))


def acquired_from_item(item: Item) -> str | None:
    """Start of the acquisition as ISO 8601 UTC, or None where the item states no time that can be read."""
    for name in ("start_datetime", "datetime"):
        stated = item.properties.get(name)
        if isinstance(stated, str):
            try:
                when = datetime.fromisoformat(stated.strip().upper())
            except ValueError:
                continue
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
            return when.isoformat(timespec="seconds").replace("+00:00", "Z")
    return None


def _polarisations(key: str, asset: Asset) -> set[str]:
    """Stated for the asset, else a part of its key: `vv`, `gamma0_VV`, `measurement-hh`."""
    stated = asset.polarizations if asset.polarizations is not None else re.split(r"[^A-Za-z]+", key)
    return {text.lower() for text in stated}


def _is_tiff(asset: Asset) -> bool:
    if asset.type is None:
        return urllib.parse.urlsplit(asset.href).path.lower().endswith((".tif", ".tiff"))
    return asset.type.partition(";")[0].strip().lower() in ("image/tiff", "image/geotiff", "image/vnd.stac.geotiff")


def _is_url(place: str) -> bool:
    return place.startswith(("https://", "http://"))


def _resolved(href: str, base: str | None) -> str:
    """An absolute http(s) URL or an absolute local path; InputError for all else."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", href):
        scheme = href.partition(":")[0].lower()
        if scheme in ("http", "https"):
            return checked_url(href)
        if scheme != "file":
            raise InputError(f"{scheme[:20]}: is not fetched; give an https address")
        parts = urllib.parse.urlsplit(href)
        if parts.netloc not in ("", "localhost"):
            raise InputError("a file: address names a path of this machine: file:///folder/item.json")
        return _absolute(urllib.parse.unquote(parts.path), None)
    if base is not None and _is_url(base):
        return checked_url(urllib.parse.urljoin(base, href))
    return _absolute(href, base)


def _absolute(path: str, base: str | None) -> str:
    if "\x00" in path or not path:
        raise InputError("an href is empty or holds a null character; give an address or a path")
    if path.startswith("/"):
        return path
    if base is None:
        raise InputError("a relative href needs an item with a link `self`, or the item's own address")
    return str(Path(base).parent / path)


def _local(place: str, settings: StacSettings) -> Path:
    """A file below one of the roots, links resolved. One message for all refusals: they tell nothing about the disk."""
    refusal = InputError(
        f"{Path(place).name[:120]!r} is no file below the folders that stac.roots of the service's settings allows"
    )
    try:
        path = Path(place).resolve(strict=True)
        if not any(path.is_relative_to(root.resolve()) for root in settings.roots) or not path.is_file():
            raise refusal
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
        raise refusal from None
    return path


def _decoded(data: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InputError(f"{name}: no JSON ({problem}); give a STAC item") from None

"""A finished scene as a STAC item (stacspec.org 1.1): what was interpreted, with what, and where the result lies.

Extensions: `processing`, `file`, `projection` where the scene's CRS has an EPSG code, `sar` where the product's name
tells all four of its required fields. `mlm` describes models, not results: as its best practices ask of results, the
result asset carries mlm:name and processing level L4, and the item does not claim the extension.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from fusar_edge import __version__
from fusar_edge.service.journal import SceneRow

Json = dict[str, Any]

STAC_VERSION = "1.1.0"
RESULT, ITEM = "result.geojson", "item.json"
_SCHEMA = "https://stac-extensions.github.io/{}/schema.json"
PROCESSING, FILE = _SCHEMA.format("processing/v1.2.0"), _SCHEMA.format("file/v2.1.0")
PROJECTION, SAR = _SCHEMA.format("projection/v2.0.0"), _SCHEMA.format("sar/v1.0.0")

_SHA256_MULTIHASH = "1220"
"""Code of SHA-256 and its length, 32 bytes (multiformats.io/multihash)."""
_UNKNOWN_START = "1970-01-01T00:00:00Z"

# Names of Sentinel-1 measurement files, of Sentinel-1 products, of OPERA RTC-S1 (made of IW bursts alone).
_PRODUCTS = (
    re.compile(r"(?P<unit>S1[A-D])-(?P<mode>IW|EW|WV|S[1-6])\d?-(?P<product>[A-Z]{3})-(?P<pol>[HV]{2})-"),
    re.compile(r"(?P<unit>S1[A-D])_(?P<mode>IW|EW|WV|S[1-6])_(?P<product>[A-Z]{3})\w_\d[A-Z](?P<pol>[SD][HV])_"),
    re.compile(r"OPERA_L2_(?P<product>RTC-S1)_\w+-\w+-(?P<mode>IW)\d_\w+_(?P<unit>S1[A-D])_.*_(?P<pol>[HV]{2})\."),
)
_POLARISATIONS = {"SH": ["HH"], "SV": ["VV"], "DH": ["HH", "HV"], "DV": ["VV", "VH"]}
"""By the code in a product's name."""


def item_from_collection(collection: Json, row: SceneRow) -> Json:
    """The item that lies beside result.geojson; `collection` is that file's content, `row` a scene that was started.

    Links are relative to it. Where the acquisition is unknown the item's time is the interval from 1970 to when the
    scene was accepted, as STAC has no item without a time.
    """
    facts = row.facts
    sensor = _sensor(row.name)
    crs = str(facts.get("crs", ""))
    projected = bool(re.fullmatch(r"EPSG:\d+", crs))
    extensions = [PROCESSING, FILE, *([PROJECTION] if projected else []), *([SAR] if sensor else [])]
    properties: Json = {"title": row.name, **_times(row), **sensor}
    if projected:
        properties |= {"proj:code": crs, "proj:shape": [facts["height"], facts["width"]]}
    properties |= {
        "processing:level": "L4",
        "processing:lineage": f"{collection['bundle']['name']} asked {', '.join(collection['tasks'])} of every tile",
        "processing:software": {"fusar-edge": __version__},
        **_own(collection, row),
    }
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extensions,
        "id": row.id,
        "geometry": facts["geometry"],
        "bbox": facts["bbox"],
        "properties": properties,
        "links": [],
        "assets": _assets(collection, row),
    }


def _own(collection: Json, row: SceneRow) -> Json:
    """What only fusar-edge knows, under its own prefix."""
    facts = {
        "bundle": collection["bundle"],
        "tasks": collection["tasks"],
        "label": row.label,
        "simulated": collection["simulated"],
        "counts": collection["counts"],
        "anchors": collection["anchors"],
        "credits": collection["credits"],
    }
    return {f"fusar_edge:{name}": value for name, value in facts.items()}


def _assets(collection: Json, row: SceneRow) -> Json:
    bundle = collection["bundle"]
    result = {
        "href": f"./{RESULT}",
        "type": "application/geo+json",
        "title": "Answers and detections",
        "roles": ["data"],
        "mlm:name": bundle["name"],
        "processing:level": "L4",
        "processing:expression": {"format": "fusar-edge-bundle-sha256", "expression": bundle["sha256"]},
    }
    assets = {"result": result}
    if href := _scene_href(row):
        assets["scene"] = {
            "href": href,
            "type": "image/tiff; application=geotiff",
            "title": row.name,
            "roles": ["source"],
            "file:size": row.size_bytes,
            "file:checksum": _SHA256_MULTIHASH + row.sha256,
        }
    return assets


def _scene_href(row: SceneRow) -> str:
    """Where it was fetched, without what may be a secret; else its place in the data folder; "" where it is neither."""
    if row.submitted_as.startswith(("https://", "http://")):
        with contextlib.suppress(ValueError):
            parts = urlsplit(row.submitted_as)
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if row.path.parent.name == row.id and row.path.parent.parent.name == "scenes":
        return f"../../scenes/{row.id}/{quote(row.path.name.encode(errors='surrogateescape'))}"
    return ""


def _times(row: SceneRow) -> Json:
    created = {} if row.finished_at is None else {"created": _iso(row.finished_at)}
    if acquired := row.facts.get("acquired"):
        return {"datetime": acquired, **created}
    return {"datetime": None, "start_datetime": _UNKNOWN_START, "end_datetime": _iso(row.accepted_at), **created}


def _sensor(name: str) -> Json:
    """Platform and sar: fields of a product whose name tells them; else nothing."""
    for pattern in _PRODUCTS:
        if match := pattern.search(name.upper()):
            return {
                "constellation": "sentinel-1",
                "platform": f"sentinel-1{match['unit'][-1].lower()}",
                "instruments": ["c-sar"],
                "sar:instrument_mode": match["mode"],
                "sar:frequency_band": "C",
                "sar:polarizations": _POLARISATIONS.get(match["pol"], [match["pol"]]),
                "sar:product_type": match["product"],
            }
    return {}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

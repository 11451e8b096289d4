"""The ground's end of the downlink: a packet -> GeoJSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from fusar_edge.errors import InputError
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.service.onboard.packet import decode
from fusar_edge.service.onboard.places import METRES_PER_DEGREE
from fusar_edge.service.onboard.records import Kind, Record, SceneHead

Json = dict[str, Any]


def read_packet(data: bytes) -> Json:
    """FeatureCollection of a packet; InputError where it is damaged or no packet.

    Features have `properties.kind` as in fusar_edge.runtime.geojson: answer, detection; and "scene", the summary of a
    scene that is done or failed. Foreign member `downlink`: sequence, made_at, bytes, records, `receipt`.
    """
    packet = decode(data)
    try:
        features = [_feature(record, head) for head, records in packet.groups for record in records]
        made_at = _iso(packet.made_at)
    except (ValueError, OverflowError, OSError) as problem:
        raise InputError(f"packet {packet.sequence} holds what cannot be ({problem}); send it again") from None
    return {
        "type": "FeatureCollection",
        "simulated": any(head.simulated for head, _ in packet.groups),
        "downlink": {
            "sequence": packet.sequence,
            "made_at": made_at,
            "bytes": packet.size,
            "records": len(features),
            "receipt": packet.receipt,
        },
        "scenes": [_scene(head) for head, _ in packet.groups],
        "features": features,
    }


def _feature(record: Record, head: SceneHead) -> Json:
    common: Json = {"scene": head.name, "scene_id": head.id, "time": _time(head), "simulated": head.simulated}
    if record.kind is Kind.scene:
        geometry = _rectangle(head.lon, head.lat, head.width, head.height, head)
        return {"type": "Feature", "geometry": geometry, "properties": {"kind": "scene", **common, **_summary(head)}}
    geometry = _rectangle(record.lon, record.lat, record.width, record.height, head)
    common |= {"tile": record.tile, "confidence": record.confidence / 100}
    if record.kind is Kind.detection:
        own: Json = {"label": record.text, "cut_by_tile": bool(record.number % 2), "merged_boxes": record.number // 2}
        return {"type": "Feature", "geometry": geometry, "properties": {"kind": "detection", **common, **own}}
    own = {"task": record.kind.name, "value": _value(record)}
    if record.kind in (Kind.count, Kind.grid):
        own["label"] = record.text
    return {"type": "Feature", "geometry": geometry, "properties": {"kind": "answer", **common, **own}}


def _value(record: Record) -> Any:
    if record.kind is Kind.count:
        return record.number
    if record.kind is Kind.grid:
        return [cell for cell in range(1, 10) if record.number >> (cell - 1) & 1]
    return record.text


def _rectangle(lon: float, lat: float, width: int, height: int, head: SceneHead) -> Json:
    """Pixels of the scene around a centre -> polygon."""
    row, column = np.array(head.axes, np.float64).reshape(2, 2)
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)], np.float64) * (width / 2, height / 2)
    metres = corners @ np.stack([row, column])
    scale = METRES_PER_DEGREE * np.array([max(np.cos(np.deg2rad(lat)), 1e-6), 1.0])
    return geometry_from_ring((metres / scale + (lon, lat)).tolist())


def _scene(head: SceneHead) -> Json:
    return {"file": head.name, "id": head.id, "time": _time(head), "simulated": head.simulated, **_summary(head)}


def _summary(head: SceneHead) -> Json:
    return {
        "status": head.status,
        "width": head.width,
        "height": head.height,
        "tiles": head.tiles,
        "tiles_answered": head.answered,
        "tiles_skipped": head.skipped,
        "answers_not_parsed": head.not_parsed,
    }


def _time(head: SceneHead) -> str | None:
    return None if head.time is None else _iso(head.time)


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

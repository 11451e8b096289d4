"""An interpretation as a GeoJSON FeatureCollection (RFC 7946).

Features have `properties.kind`:
    "answer"      one for each tile and question: footprint of the tile, the text, what was parsed, confidence, latency
    "detection"   one for each target of a scene, doubles of overlapping tiles merged: the box on the ground

`classify` asks one question for each box, every other task one for each tile. Text that does not parse is kept with
parse status "failed" and never becomes a box. Foreign members of the collection: `fusar_edge`, `bundle`, `scenes`,
`counts`, `anchors`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from fusar_edge import __version__
from fusar_edge.anchors.codes import CREDIT
from fusar_edge.data.truth import Box
from fusar_edge.runtime.detections import Detection, box_ring
from fusar_edge.runtime.interpreter import Interpretation, Record, SceneResult
from fusar_edge.runtime.rings import geometry_from_ring

Json = dict[str, Any]


def collection_from_interpretation(result: Interpretation) -> Json:
    """The whole result; what comes of a simulated scene says so."""
    features: list[Json] = []
    for scene in result.scenes:
        hashes = {"bundle": result.bundle.sha256, "table": result.table_sha256, "scene": scene.sha256}
        common = {"scene": scene.path.name, "time": scene.acquired, "simulated": scene.simulated, "sha256": hashes}
        features += [_answer_feature(record, scene, common) for record in scene.records]
        features += [_detection_feature(detection, scene, common) for detection in scene.detections]
    settings = result.bundle.settings
    return {
        "type": "FeatureCollection",
        "fusar_edge": __version__,
        "bundle": {
            "name": settings.name,
            "sha256": result.bundle.sha256,
            "precision": settings.precision,
            "engine": settings.engine,
        },
        "simulated": any(scene.simulated for scene in result.scenes),
        "tasks": list(result.tasks),
        "label": result.label,
        "scenes": [_scene_facts(scene) for scene in result.scenes],
        "counts": counts(result),
        "anchors": anchor_counts(result),
        "credits": credit_lines(result),
        "features": features,
    }


def counts(result: Interpretation) -> dict[str, int]:
    """Tiles, skipped tiles, answers, answers that did not parse, answers cut short, merged detections."""
    records = [record for scene in result.scenes for record in scene.records]
    return {
        "scenes": len(result.scenes),
        "tiles": sum(len(scene.windows) for scene in result.scenes),
        "tiles_skipped": sum(scene.skipped for scene in result.scenes),
        "answers": len(records),
        "answers_not_parsed": sum(not record.answer.parsed.ok for record in records),
        "answers_cut_short": sum(record.answer.generation.stop_reason != "eos" for record in records),
        "detections": sum(len(scene.detections) for scene in result.scenes),
    }


def anchor_counts(result: Interpretation) -> dict[str, Any] | None:
    """Nodes of all tiles by what became of them, and the found ones by year; None without a table."""
    if result.table_sha256 is None:
        return None
    tiles = {(id(scene), record.tile): record for scene in result.scenes for record in scene.records}.values()
    nodes, years = Counter[str](), Counter[str]()
    for record in tiles:
        nodes.update({"found": record.anchors_used, **record.anchors_missing})
        years.update({str(year): count for year, count in record.anchor_years.items()})
    return {**nodes, "years": dict(sorted(years.items()))}


def credit_lines(result: Interpretation) -> list[str]:
    """Lines that licences require beside the result."""
    used = any(record.anchors_used for scene in result.scenes for record in scene.records)
    return [CREDIT] if used else []


def collection_bytes(collection: Json) -> bytes:
    """UTF-8 text, one line per feature and foreign member."""
    members = [
        f"{_text(name)}: {_text(value)}" for name, value in collection.items() if name not in ("type", "features")
    ]
    head = ",\n".join(['"type": "FeatureCollection"', *members])
    features = ",\n".join(_text(feature) for feature in collection["features"])
    return f'{{\n{head},\n"features": [\n{features}\n]\n}}\n'.encode()


def _answer_feature(record: Record, scene: SceneResult, common: Json) -> Json:
    answer, generation = record.answer, record.answer.generation
    properties: Json = {
        "kind": "answer",
        **common,
        "tile": record.tile,
        "task": record.task,
        "question": answer.question,
        "text": answer.parsed.text,
        "parse_status": "parsed" if answer.parsed.ok else "failed",
        "value": _value(record, scene),
        "confidence": round(generation.confidence, 6),
        "stop_reason": generation.stop_reason,
        "tokens": len(generation.ids),
        "window_px": _window(record),
        "anchors_used": record.anchors_used,
        "anchors_missing": record.anchors_missing,
        "anchors_years": {str(year): count for year, count in record.anchor_years.items()},
        "latency_ms": {part: round(ms, 3) for part, ms in record.latency_ms.items()},
    }
    if record.box:
        properties["box"] = _box(record.box, scene)
    return _feature(scene.located.footprint(record.window), properties)


def _detection_feature(detection: Detection, scene: SceneResult, common: Json) -> Json:
    properties = {
        "kind": "detection",
        **common,
        "tile": detection.tile,
        "label": detection.label,
        "confidence": round(detection.confidence, 6),
        "box_px": _rounded(detection.box),
        "cut_by_tile": detection.cut,
        "merged_boxes": detection.seen,
    }
    return _feature(box_ring(detection.box, scene.located), properties)


def _value(record: Record, scene: SceneResult) -> Any:
    """What was parsed; None where nothing was."""
    value = record.answer.parsed.value
    if not record.answer.parsed.ok or record.task != "detect":
        return value
    return [{"label": d.label, **_box(d.box, scene)} for d in record.detections]


def _box(box: Box, scene: SceneResult) -> Json:
    """A box in pixels of the scene and as a geometry on the ground."""
    return {"box_px": _rounded(box), "geometry": geometry_from_ring(box_ring(box, scene.located))}


def _scene_facts(scene: SceneResult) -> Json:
    return {
        "file": scene.path.name,
        "sha256": scene.sha256,
        "time": scene.acquired,
        "width": scene.width,
        "height": scene.height,
        "values": scene.kind,
        "crs": scene.crs_name,
        "anchors_year": scene.anchor_year,
        "tiles": len(scene.windows),
        "tiles_skipped": scene.skipped,
        "detections": len(scene.detections),
    }


def _feature(ring: list[list[float]], properties: Json) -> Json:
    return {"type": "Feature", "geometry": geometry_from_ring(ring), "properties": properties}


def _window(record: Record) -> Json:
    window = record.window
    return {"row": window.row_off, "col": window.col_off, "height": window.height, "width": window.width}


def _rounded(box: Box) -> list[float]:
    return [round(v, 2) for v in box]


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()

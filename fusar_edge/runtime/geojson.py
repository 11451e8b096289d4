"""An interpretation as a GeoJSON FeatureCollection (RFC 7946).

Features have `properties.kind`:
    "answer"      one for each tile and question: footprint of the tile, the text, what was parsed, confidence, latency
    "detection"   one for each target of a scene, doubles of overlapping tiles merged: the box on the ground

`classify` asks one question for each box, every other task one for each tile. Text that does not parse is kept with
parse status "failed" and never becomes a box. Foreign members of the collection: `fusar_edge`, `bundle`, `scenes`,
`counts`, `anchors`.

A collection is made of features alone, so that the service makes the same one of features that it stored.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fusar_edge import __version__
from fusar_edge.anchors.codes import CREDIT
from fusar_edge.data.truth import Box
from fusar_edge.runtime.bundle import Bundle
from fusar_edge.runtime.detections import Detection, Located, box_ring
from fusar_edge.runtime.interpreter import Interpretation, SceneResult
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.runtime.tile import Record

Json = dict[str, Any]


@dataclass(frozen=True)
class ScenePart:
    """What a collection holds of one scene."""

    facts: Json
    """Its entry in the collection's `scenes`."""
    simulated: bool
    answers: Sequence[Json]
    """Features, those of one tile one after the other."""
    detections: Sequence[Json]


@dataclass
class Tally:
    """Counts over the answer features of tiles."""

    answers: int = 0
    not_parsed: int = 0
    cut_short: int = 0
    nodes: Counter[str] = field(default_factory=Counter)
    """Nodes of the anchors by what became of them."""
    years: Counter[str] = field(default_factory=Counter)
    """Vectors by year."""

    def add_tile(self, answers: Iterable[Json]) -> None:
        """Count the answer features of one tile, all of them."""
        own: Json = {}
        for answer in answers:
            own = answer["properties"]
            self.answers += 1
            self.not_parsed += own["parse_status"] != "parsed"
            self.cut_short += own["stop_reason"] != "eos"
        if own:  # the anchors are the tile's, the same in all its answers
            self.nodes.update({"found": own["anchors_used"], **own["anchors_missing"]})
            self.years.update(own["anchors_years"])


def collection_from_interpretation(result: Interpretation) -> Json:
    """The whole result; what comes of a simulated scene says so."""
    parts = [_part(scene, result) for scene in result.scenes]
    return collection_from_parts(result.bundle, result.tasks, result.label, result.table_sha256, parts)


def collection_from_parts(
    bundle: Bundle, tasks: Sequence[str], label: str, table_sha256: str | None, parts: Sequence[ScenePart]
) -> Json:
    """The collection of scenes of which the features are there already."""
    settings, tally = bundle.settings, Tally()
    for part in parts:
        for _, answers in itertools.groupby(part.answers, lambda feature: feature["properties"]["tile"]):
            tally.add_tile(answers)
    anchors = {**tally.nodes, "years": dict(sorted(tally.years.items()))}
    return {
        "type": "FeatureCollection",
        "fusar_edge": __version__,
        "bundle": {
            "name": settings.name,
            "sha256": bundle.sha256,
            "precision": settings.precision,
            "engine": settings.engine,
        },
        "simulated": any(part.simulated for part in parts),
        "tasks": list(tasks),
        "label": label,
        "scenes": [part.facts for part in parts],
        "counts": {
            "scenes": len(parts),
            "tiles": sum(part.facts["tiles"] for part in parts),
            "tiles_skipped": sum(part.facts["tiles_skipped"] for part in parts),
            "answers": tally.answers,
            "answers_not_parsed": tally.not_parsed,
            "answers_cut_short": tally.cut_short,
            "detections": sum(len(part.detections) for part in parts),
        },
        "anchors": None if table_sha256 is None else anchors,
        "credits": [CREDIT] if tally.nodes["found"] else [],
        "features": [feature for part in parts for feature in (*part.answers, *part.detections)],
    }


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


def common_properties(
    name: str, time: str | None, simulated: bool, *, bundle_sha256: str, table_sha256: str | None, scene_sha256: str
) -> Json:
    """What every feature of a scene says: file name, acquisition, hashes of what it was made from."""
    hashes = {"bundle": bundle_sha256, "table": table_sha256, "scene": scene_sha256}
    return {"scene": name, "time": time, "simulated": simulated, "sha256": hashes}


def answer_feature(record: Record, located: Located, common: Json) -> Json:
    """One answer on the footprint of its tile; `common` as `common_properties` makes it."""
    answer, generation = record.answer, record.answer.generation
    properties: Json = {
        "kind": "answer",
        **common,
        "tile": record.tile,
        "task": record.task,
        "question": answer.question,
        "text": answer.parsed.text,
        "parse_status": "parsed" if answer.parsed.ok else "failed",
        "value": _value(record, located),
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
        properties["box"] = _box(record.box, located)
    return _feature(geometry_from_ring(located.footprint(record.window)), properties)


def detection_feature(detection: Detection, geometry: Json, common: Json) -> Json:
    """One target; `geometry` is its box on the ground, as `box_geometry` makes it."""
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
    return _feature(geometry, properties)


def box_geometry(box: Box, located: Located) -> Json:
    """A box in pixels of the scene as a geometry on the ground."""
    return geometry_from_ring(box_ring(box, located))


def _part(scene: SceneResult, result: Interpretation) -> ScenePart:
    common = common_properties(
        scene.path.name,
        scene.acquired,
        scene.simulated,
        bundle_sha256=result.bundle.sha256,
        table_sha256=result.table_sha256,
        scene_sha256=scene.sha256,
    )
    answers = [answer_feature(record, scene.located, common) for record in scene.records]
    detections = [detection_feature(d, box_geometry(d.box, scene.located), common) for d in scene.detections]
    facts = {
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
    return ScenePart(facts, scene.simulated, answers, detections)


def _value(record: Record, located: Located) -> Any:
    """What was parsed; None where nothing was."""
    value = record.answer.parsed.value
    if not record.answer.parsed.ok or record.task != "detect":
        return value
    return [{"label": d.label, **_box(d.box, located)} for d in record.detections]


def _box(box: Box, located: Located) -> Json:
    return {"box_px": _rounded(box), "geometry": box_geometry(box, located)}


def _feature(geometry: Json, properties: Json) -> Json:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _window(record: Record) -> Json:
    window = record.window
    return {"row": window.row_off, "col": window.col_off, "height": window.height, "width": window.width}


def _rounded(box: Box) -> list[float]:
    return [round(v, 2) for v in box]


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()

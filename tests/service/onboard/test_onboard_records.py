from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from downlink_scenes import SimulatedScene

from fusar_edge.runtime.detections import Detection, merged
from fusar_edge.runtime.rings import geometry_from_ring
from fusar_edge.service.journal import Journal, SceneRow, TileOutcome
from fusar_edge.service.onboard.ground import read_packet
from fusar_edge.service.onboard.packet import encode_body, sealed
from fusar_edge.service.onboard.places import METRES_PER_DEGREE
from fusar_edge.service.onboard.records import (
    Kind,
    Record,
    head_from_row,
    records_from_outcomes,
    worth,
)
from fusar_edge.service.pipeline.work import windows_from_facts


def row_of(journal: Journal, scene_id: str) -> SceneRow:
    row = journal.scene(scene_id)
    assert row is not None
    return row


def features(scene: SimulatedScene, kind: str) -> list[dict[str, Any]]:
    return [f for f in scene.collection["features"] if f["properties"]["kind"] == kind]


def corners(feature: dict[str, Any]) -> np.ndarray:
    """[4, 2] metres, in the order of the ring."""
    points = np.array(feature["geometry"]["coordinates"][0][:-1])
    return points * METRES_PER_DEGREE * np.array([np.cos(np.deg2rad(points[:, 1].mean())), 1.0])


def metres_apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two rings' corners [4, 2], wherever they begin."""
    return float(min(np.abs(a - np.roll(b, turn, axis=0)).max() for turn in range(len(b))))


def test_every_detection_and_every_answer_that_says_more_is_a_record(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    for scene in scenes:
        found = records_from_outcomes(row_of(journal, scene.put(journal)), scene.outcomes)
        kinds = [record.kind for record in found.values()]
        answers = [f["properties"] for f in features(scene, "answer")]
        said = [own for own in answers if own["task"] != "detect" and own["parse_status"] == "parsed"]
        assert kinds.count(Kind.detection) == len(features(scene, "detection")) > 0
        assert sorted(k.name for k in kinds if k not in (Kind.detection, Kind.scene)) == sorted(o["task"] for o in said)
        assert kinds.count(Kind.scene) == 1


def test_on_the_ground_a_box_is_where_it_was_within_two_metres(scenes: list[SimulatedScene], journal: Journal) -> None:
    """Pixels of 3 m; a place is rounded to 1e-5 degrees and a size to whole pixels."""
    for scene in scenes:
        row = row_of(journal, scene.put(journal))
        found = list(records_from_outcomes(row, scene.outcomes).values())
        group = (head_from_row(row, scene.outcomes), found)
        collection = read_packet(sealed(encode_body([group]), 1, 1)[0])
        assert collection["simulated"] is True
        for kind, key in (("detection", ("tile", "label")), ("answer", ("tile", "task"))):
            sent = [f for f in collection["features"] if f["properties"]["kind"] == kind]
            for feature in sent:
                own = [f for f in features(scene, kind) if all(_same(f, feature, name) for name in key)]
                distances = [metres_apart(corners(f), corners(feature)) for f in own]
                assert min(distances) < 2.0


def _same(a: dict[str, Any], b: dict[str, Any], name: str) -> bool:
    return bool(a["properties"][name] == b["properties"][name])


def test_values_and_confidences_arrive(scenes: list[SimulatedScene], journal: Journal) -> None:
    scene = scenes[0]
    row = row_of(journal, scene.put(journal))
    group = (head_from_row(row, scene.outcomes), list(records_from_outcomes(row, scene.outcomes).values()))
    collection = read_packet(sealed(encode_body([group]), 1, 1)[0])
    sent = {
        (f["properties"]["tile"], f["properties"]["task"]): f["properties"]
        for f in collection["features"]
        if "task" in f["properties"]
    }
    for feature in features(scene, "answer"):
        own = feature["properties"]
        if own["task"] == "detect" or own["parse_status"] != "parsed":
            assert (own["tile"], own["task"]) not in sent
            continue
        found = sent[own["tile"], own["task"]]
        expected = own["text"].strip() if own["task"] == "caption" else own["value"]
        assert found["value"] == (list(expected) if own["task"] == "grid" else expected)
        assert found["confidence"] == pytest.approx(own["confidence"], abs=0.0051)


def scattered(rng: np.random.Generator, scene: SimulatedScene) -> list[TileOutcome]:
    """Ships at random places, each seen by every tile that holds a part of it, with a confidence of its own."""
    corner = rng.uniform(0, 944 - 30, (25, 2))
    outcomes = []
    for index, window in enumerate(windows_from_facts(scene.facts)):
        low = np.array([window.col_off, window.row_off])
        found = []
        for x1, y1, x2, y2 in np.hstack([np.maximum(corner, low), np.minimum(corner + 30, low + 504)]):
            if x2 - x1 > 4 and y2 - y1 > 4:
                ring = [[x1, y1], [x1, y2], [x2, y2], [x2, y1], [x1, y1]]
                geometry = {"type": "Polygon", "coordinates": [(np.array(ring) * -1e-5).tolist()]}
                box = [float(v) for v in (x1, y1, x2, y2)]
                own = {"box": box, "label": "ship", "confidence": float(rng.random()), "tile": index}
                found.append({**own, "cut": False, "seen": 1, "geometry": geometry})
        outcomes.append(TileOutcome(index=index, status="answered", detections=found))
    return outcomes


def test_a_box_waits_for_the_tiles_that_may_see_it_too_and_then_never_changes(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    rng = np.random.default_rng(0)
    row = row_of(journal, scenes[0].put(journal, tiles=0))
    waited = 0
    for _ in range(20):
        outcomes = scattered(rng, scenes[0])
        whole = records_from_outcomes(row, outcomes)
        assert len(whole) == len(merged([_detection(d) for outcome in outcomes for d in outcome.detections]))
        known: dict[str, Record] = {}
        done: list[TileOutcome] = []
        for index in rng.permutation(4):
            done.append(outcomes[index])
            part = records_from_outcomes(row, done)
            assert known.items() <= part.items() <= whole.items()
            waited += len(merged([_detection(d) for outcome in done for d in outcome.detections])) - len(part)
            known = part
        assert known == whole
    assert waited > 100


def _detection(kept: dict[str, Any]) -> Detection:
    return Detection(**{**{n: v for n, v in kept.items() if n != "geometry"}, "box": tuple(kept["box"])})


def test_worth_grows_with_confidence_and_priority_and_halves_in_a_day(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    row = row_of(journal, scenes[0].put(journal, now=1e9))
    head = head_from_row(row, scenes[0].outcomes)
    urgent = head_from_row(row_of(journal, scenes[1].put(journal, now=1e9, priority=10)), scenes[1].outcomes)
    box = Record(Kind.detection, 0, 0.0, 0.0, 9, 9, 80, "ship", 2)
    now = head.accepted_at
    assert worth(box, head, now) == pytest.approx(8.0 * 0.8)
    assert worth(box, urgent, urgent.accepted_at) == pytest.approx(2 * worth(box, head, now))
    assert worth(box, head, now + 86_400) == pytest.approx(worth(box, head, now) / 2)
    none, some = (Record(Kind.count, 0, 0.0, 0.0, 504, 504, 90, "ship", n) for n in (0, 3))
    assert worth(none, head, now) < worth(some, head, now)


def test_an_answer_that_did_not_parse_stays_on_board_and_is_counted(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    row = row_of(journal, scenes[0].put(journal))
    outcomes: list[TileOutcome] = msgspec.convert(msgspec.to_builtins(scenes[0].outcomes), list[TileOutcome])
    (own,) = [f["properties"] for f in outcomes[2].features if f["properties"]["task"] == "count"]
    own |= {"parse_status": "failed", "value": None}
    counts = [r.tile for r in records_from_outcomes(row, outcomes).values() if r.kind is Kind.count]
    assert sorted(counts) == [0, 1, 3]
    assert head_from_row(row, outcomes).not_parsed == head_from_row(row, scenes[0].outcomes).not_parsed + 1


@pytest.mark.parametrize("lon", [179.99, 179.9999, 180.0, 180.0001, 180.01, -179.9999])
def test_a_box_near_180_degrees_arrives_where_it_was(
    scenes: list[SimulatedScene], journal: Journal, lon: float
) -> None:
    row = row_of(journal, scenes[0].put(journal, tiles=0))
    facts = {**row.facts, "bbox": [179.95, 9.99, -179.95, 10.01]}
    half = 3.0 * 20 / METRES_PER_DEGREE
    east = half / np.cos(np.deg2rad(10.0))
    ring = [[lon - east, 10 + half], [lon - east, 10 - half], [lon + east, 10 - half], [lon + east, 10 + half]]
    geometry = geometry_from_ring([*ring, ring[0]])
    own = {"box": [10.0, 10.0, 50.0, 50.0], "label": "ship", "confidence": 0.5, "tile": 0, "cut": False, "seen": 1}
    outcome = TileOutcome(index=0, status="answered", detections=[{**own, "geometry": geometry}])
    found = list(records_from_outcomes(dataclasses.replace(row, facts=facts), [outcome]).values())
    head = head_from_row(dataclasses.replace(row, facts=facts), [])
    head = msgspec.structs.replace(head, axes=(3.0, 0.0, 0.0, -3.0))
    assert abs(found[0].lon - head.lon) < 0.1
    (sent,) = read_packet(sealed(encode_body([(head, found)]), 1, 1)[0])["features"]
    assert sent["geometry"]["type"] == geometry["type"]
    corners_sent, corners_given = (
        np.sort(np.array([p for part in _parts(g) for p in part]), axis=0) for g in (sent["geometry"], geometry)
    )
    assert np.abs(corners_sent - corners_given).max() < 2e-5


def _parts(geometry: dict[str, Any]) -> list[list[list[float]]]:
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [polygon[0] for polygon in polygons]

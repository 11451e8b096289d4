"""Clocks at the seams of the runtime: they see every part, and change nothing of what is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench_parts import default_session, small_workload

from fusar_edge.bench.observations import (
    Observation,
    ObservationWriter,
    measured,
    read_observations,
)
from fusar_edge.bench.timing import LEAVES, PARTS, Stopwatch, TimedScene
from fusar_edge.bench.workload import Workload
from fusar_edge.errors import InputError
from fusar_edge.runtime.interpreter import interpret
from fusar_edge.runtime.session import Session

SHORT = ("count", "grid", "classify")
"""Of few tokens."""


@pytest.fixture(scope="module")
def session() -> Session:
    return default_session()


@pytest.fixture(scope="module")
def work(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    with small_workload(session, tmp_path_factory.mktemp("work"), SHORT) as workload:
        yield workload


@pytest.fixture(scope="module")
def watch(session: Session, work: Workload) -> Stopwatch:
    return Stopwatch(session, work)


def test_what_is_said_under_the_clock_is_what_interpret_says(
    session: Session, work: Workload, watch: Stopwatch
) -> None:
    said = watch.query("single", [1], "query 0").records[0]
    path = work.scene.path
    whole = interpret(session.bundle, [path], SHORT, boxes=work.boxes, values="power", session=session)
    wanted = [record for record in whole.scenes[0].records if record.tile == 1]
    assert [(r.task, r.answer.generation.ids) for r in said] == [(r.task, r.answer.generation.ids) for r in wanted]
    assert {r.task for r in said} == set(SHORT)


def test_every_part_is_seen_and_parts_that_follow_each_other_fit_into_the_tile(watch: Stopwatch) -> None:
    timed = watch.query("single", [1], "query 3")
    by_part: dict[str, list[Observation]] = {}
    for one in timed.observations:
        by_part.setdefault(one.part, []).append(one)
    assert set(by_part) == set(PARTS) - {"anchors"}  # no table was given
    disjoint = sum(one.ms for part in LEAVES if part != "parse" for one in by_part.get(part, []))
    (tile,) = by_part["tile"]
    assert disjoint <= tile.ms == timed.ms
    assert disjoint > 0.5 * tile.ms
    assert {one.unit_id for one in by_part["vision"]} == {"tile 1"}
    assert {one.unit_id for one in by_part["answer"]} == {f"tile 1/{task}" for task in SHORT}
    assert by_part["query"][0].unit_id == "query 3"
    for answer, ttft in zip(by_part["answer"], by_part["ttft"], strict=True):
        assert ttft.ms <= answer.ms
    for ttft, prefill in zip(by_part["ttft"], by_part["prefill"], strict=True):
        assert ttft.ms >= prefill.ms - 0.05, "what a grammar forces is not the model's first token"


def test_windows_of_parts_lie_inside_the_window_of_their_tile(watch: Stopwatch) -> None:
    seen = watch.query("single", [0], "query 0").observations
    (tile,) = [one for one in seen if one.part == "tile"]
    for one in seen:
        if one.part != "parse":  # done once more, afterwards
            assert tile.start - 1e-6 <= one.start <= one.at <= tile.at + 1e-6, one.part


def test_tokens_are_counted_where_they_are_made(watch: Stopwatch) -> None:
    timed = watch.query("single", [1], "query 0")
    tokens = {f"tile 1/{r.task}": r.answer.generation for r in timed.records[0]}
    for one in timed.observations:
        if one.part == "answer":
            assert one.tokens == len(tokens[one.unit_id].ids)
        if one.part == "decode":
            assert one.tokens == tokens[one.unit_id].decode_tokens
            (tpot,) = [t for t in timed.observations if t.part == "tpot" and t.unit_id == one.unit_id]
            assert tpot.ms == pytest.approx(one.ms / one.tokens)


def test_tiles_of_a_batch_share_its_time_and_answer_as_alone(watch: Stopwatch) -> None:
    batch = watch.query("multi", [0, 1, 2], "query 0")
    tiles = [one.ms for one in batch.observations if one.part == "tile"]
    assert sum(tiles) == pytest.approx(batch.ms)
    windows = sorted((one.start, one.at) for one in batch.observations if one.part == "tile")
    assert all(a[1] == pytest.approx(b[0], abs=1e-4) for a, b in itertools.pairwise(windows)), "no energy twice"
    assert len({round(one.ms, 9) for one in batch.observations if one.part == "vision"}) == 1
    alone = watch.query("single", [2], "query 0").records[0]
    assert [r.answer.generation.ids for r in batch.records[2]] == [r.answer.generation.ids for r in alone]


def test_reading_in_two_halves_gives_the_same_pixels(work: Workload) -> None:
    timed, window = TimedScene(work.scene), work.windows[2]
    one, other = timed.read(window), work.scene.read(window)
    assert np.array_equal(one.grey, other.grey)
    assert np.array_equal(one.valid, other.valid)
    assert timed.read_ms > 0
    assert timed.radiometry_ms > 0
    assert timed.width == work.scene.width


def test_each_tile_is_written_as_geojson(watch: Stopwatch, work: Workload) -> None:
    watch.query("single", [3], "query 0")
    written = json.loads(work.out.read_text())
    assert {feature["properties"]["tile"] for feature in written["features"]} == {3}


def test_every_pass_over_the_scene_decodes_it_anew(watch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr("fusar_edge.bench.timing.forget_raster", lambda: passes.append(1))
    for indices in ([0], [1], [2], [3], [0], [1]):
        watch.query("single", indices, "query")
    assert len(passes) == 2
    watch.query("multi", [2, 3, 0, 1], "query")  # the pass begins in the midst of a batch
    assert len(passes) == 3


def test_raw_numbers_are_kept_whole_and_read_back(tmp_path: Path, watch: Stopwatch) -> None:
    seen = [*watch.query("single", [0], "q").observations, *watch.query("single", [1], "q", warm_up=True).observations]
    with ObservationWriter(tmp_path / "observations.jsonl") as writer:
        writer.add(seen)
    assert read_observations(tmp_path) == seen == writer.observations
    assert {one.unit_id.partition("/")[0] for one in measured(seen, part="tile")} == {"tile 0"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "observations.jsonl"
    path.write_text('{"scenario":"single","part":"tile","unit_id":"t","ms":1,"at":0}\n{"ms":-1}\n')
    with pytest.raises(InputError, match="line 2"):
        read_observations(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_observations(tmp_path / "none")

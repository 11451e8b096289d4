from __future__ import annotations

import gzip
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from downlink_scenes import SimulatedScene

from fusar_edge.errors import InputError
from fusar_edge.service.journal import Journal
from fusar_edge.service.onboard.downlink import (
    Made,
    acknowledge,
    bytes_from_text,
    make_packet,
    withdraw,
)
from fusar_edge.service.onboard.ground import read_packet
from fusar_edge.service.onboard.packet import decode
from fusar_edge.service.service import Housekeeper

NOW = 1e9
HOUR = 3600.0


def names(made: Made) -> set[tuple[Any, ...]]:
    """What a packet holds, as the ground can tell it apart."""
    if not made.data:
        return set()
    records = [(head.id, r) for head, own in decode(made.data).groups for r in own]
    found = {(scene, r.kind.name, r.tile, r.width, r.height, r.text, round(r.lon * 1e5)) for scene, r in records}
    assert len(found) == len(records) == made.records
    return found


def receipt_of(made: Made) -> str:
    return str(read_packet(made.data)["downlink"]["receipt"])


@pytest.mark.parametrize("budget", [280, 340, 1000])
def test_packets_keep_to_the_budget_and_together_hold_every_record_once(
    scenes: list[SimulatedScene], journal: Journal, tmp_path: Path, budget: int
) -> None:
    whole = Journal.open(tmp_path / "whole.sqlite", ())
    for held in (journal, whole):
        for scene in scenes:
            scene.put(held)
    everything = names(make_packet(whole, 1 << 16, now=NOW))
    whole.close()
    seen: set[tuple[Any, ...]] = set()
    while made := make_packet(journal, budget, now=NOW):
        if made.sequence is None:
            break
        assert len(made.data) <= budget
        assert not names(made) & seen
        seen |= names(made)
        assert made.left == len(everything) - len(seen)
    assert seen == everything


def test_an_acknowledged_record_never_goes_again(scenes: list[SimulatedScene], journal: Journal) -> None:
    for scene in scenes:
        scene.put(journal)
    first = make_packet(journal, 300, now=NOW)
    taken = acknowledge(journal, [receipt_of(first)], now=NOW)
    assert (taken.packets, taken.records) == (1, first.records)
    second = make_packet(journal, 1 << 16, now=NOW + 1000 * HOUR)
    assert first.records
    assert second.records
    assert not names(first) & names(second)


def test_without_a_receipt_a_record_goes_again_but_not_before_its_time(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    scenes[0].put(journal)
    first = make_packet(journal, 1 << 16, now=NOW)
    assert make_packet(journal, 1 << 16, now=NOW + 5.9 * HOUR).sequence is None
    again = make_packet(journal, 1 << 16, now=NOW + 6.1 * HOUR)
    assert names(again) == names(first)
    assert again.sequence != first.sequence


def test_a_receipt_that_comes_after_the_record_went_again_counts(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    scenes[0].put(journal)
    first = make_packet(journal, 1 << 16, now=NOW)
    again = make_packet(journal, 1 << 16, now=NOW + 7 * HOUR)
    assert acknowledge(journal, [receipt_of(first)]).records == first.records
    assert acknowledge(journal, [receipt_of(again), receipt_of(first)]).records == 0
    assert make_packet(journal, 1 << 16, now=NOW + 100 * HOUR).sequence is None


@pytest.mark.parametrize(
    ("receipt", "message"),
    [("9-00000000", "none of the last"), ("1-00000000", "another CRC"), ("one", "SEQUENCE-CRC"), ("1-12", "'1-12'")],
)
def test_one_wrong_receipt_takes_none(
    scenes: list[SimulatedScene], journal: Journal, receipt: str, message: str
) -> None:
    scenes[0].put(journal)
    made = make_packet(journal, 1 << 16, now=NOW)
    with pytest.raises(InputError, match=message):
        acknowledge(journal, [receipt_of(made), receipt])
    assert acknowledge(journal, [receipt_of(made)]).records == made.records


def test_a_scene_of_higher_priority_goes_first(scenes: list[SimulatedScene], journal: Journal) -> None:
    for urgent in range(2):
        other = Journal.open(journal.path.with_name(f"{urgent}.sqlite"), ())
        ids = [scene.put(other, priority=50 * (i == urgent)) for i, scene in enumerate(scenes)]
        assert {name[0] for name in names(make_packet(other, 200, now=NOW))} == {ids[urgent]}
        other.close()


def test_detections_go_before_captions(scenes: list[SimulatedScene], journal: Journal) -> None:
    scenes[0].put(journal)
    first = {name[1] for name in names(make_packet(journal, 200, now=NOW))}
    assert "detection" in first
    assert "caption" not in first


def test_a_running_scene_gives_its_tiles_as_they_are_done_and_each_once(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    scene = scenes[0]
    scene.put(journal, tiles=2)
    first = make_packet(journal, 1 << 16, now=NOW)
    assert read_packet(first.data)["scenes"][0]["status"] == "running"
    scene.put(journal)
    second = make_packet(journal, 1 << 16, now=NOW)
    assert first.records
    assert second.records
    assert not names(first) & names(second)
    (summary,) = [f["properties"] for f in read_packet(second.data)["features"] if f["properties"]["kind"] == "scene"]
    assert (summary["status"], summary["tiles_answered"]) == ("done", 4)


def test_a_scene_that_failed_and_was_done_later_has_the_later_summary(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    scene_id = scenes[0].put(journal, tiles=1)
    journal.fail(scene_id, "cut short", [])
    failed = make_packet(journal, 1 << 16, now=NOW)
    journal.retry(scene_id)
    scenes[0].put(journal)
    done = make_packet(journal, 1 << 16, now=NOW + 100 * HOUR)
    for made, status in ((failed, "failed"), (done, "done")):
        summaries = [f for f in read_packet(made.data)["features"] if f["properties"]["kind"] == "scene"]
        assert [f["properties"]["status"] for f in summaries] == [status]


def test_a_finished_scene_that_is_acknowledged_leaves_one_row(scenes: list[SimulatedScene], journal: Journal) -> None:
    for scene in scenes:
        scene.put(journal)
    acknowledge(journal, [receipt_of(make_packet(journal, 1 << 16, now=NOW))])
    assert journal.read("SELECT count(*) AS n FROM downlink_records")[0]["n"] == 0
    assert [row["closed"] for row in journal.read("SELECT closed FROM downlink_scenes")] == [1, 1]
    assert make_packet(journal, 1 << 16, now=NOW + 100 * HOUR).sequence is None


def test_what_the_journal_has_forgotten_still_goes_down(scenes: list[SimulatedScene], journal: Journal) -> None:
    scenes[0].put(journal)
    first = make_packet(journal, 200, now=NOW)
    journal.prune(keep_events=0, keep_done_days=-1)
    assert not journal.scenes()
    second = make_packet(journal, 1 << 16, now=NOW)
    assert first.left == second.records > 0


def test_what_the_service_forgets_before_the_first_pass_goes_down_all_the_same(
    scenes: list[SimulatedScene], journal: Journal, tmp_path: Path
) -> None:
    scenes[0].put(journal)
    limits = SimpleNamespace(keep_events=0, keep_days=-1)
    settings = SimpleNamespace(profile="onboard", data_dir=tmp_path, limits=limits)
    parts = SimpleNamespace(settings=settings, journal=journal, intake=SimpleNamespace(drop_unknown=lambda: None))
    assert Housekeeper(parts).tidy()  # type: ignore[arg-type]
    assert not journal.scenes()
    assert make_packet(journal, 1 << 16, now=NOW).records > 10


def test_a_packet_that_could_not_be_written_is_withdrawn(scenes: list[SimulatedScene], journal: Journal) -> None:
    scenes[0].put(journal)
    lost = make_packet(journal, 1 << 16, now=NOW)
    assert lost.sequence is not None
    withdraw(journal, lost.sequence)
    assert names(make_packet(journal, 1 << 16, now=NOW)) == names(lost)


def test_a_budget_that_holds_no_record_is_refused_with_the_least_one(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    scenes[0].put(journal)
    with pytest.raises(InputError, match=r"50 bytes holds no record: the smallest packet has \d+") as refusal:
        make_packet(journal, 50, now=NOW)
    least = int(str(refusal.value).split(" has ")[1].split(";")[0])
    with pytest.raises(InputError):
        make_packet(journal, least - 1, now=NOW)
    assert make_packet(journal, least, now=NOW).records == 1


def test_two_commands_at_once_never_send_one_record_twice(scenes: list[SimulatedScene], journal: Journal) -> None:
    for scene in scenes:
        scene.put(journal)
    made: list[Made] = []
    start = threading.Barrier(3)

    def command() -> None:
        own = Journal.open(journal.path, ())
        start.wait()
        made.append(make_packet(own, 250, now=NOW))
        own.close()

    threads = [threading.Thread(target=command) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [names(packet) for packet in made]
    assert len(set.union(*held)) == sum(map(len, held))
    assert len({packet.sequence for packet in made if packet.sequence}) == sum(bool(packet.sequence) for packet in made)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_lost_everything_arrives_and_nothing_acknowledged_goes_again(
    scenes: list[SimulatedScene], journal: Journal, seed: int
) -> None:
    rng = random.Random(seed)
    now, tiles = NOW, [0, 0]
    on_the_way: list[Made] = []
    arrived: set[tuple[Any, ...]] = set()
    acknowledged: set[tuple[Any, ...]] = set()
    for step in range(200):
        now += rng.choice([0.1, 1, 8]) * HOUR
        at_end = step > 60
        index = rng.randrange(2)
        if tiles[index] < 4 and (at_end or rng.random() < 0.4):
            tiles[index] += 1
            scenes[index].put(journal, tiles=tiles[index])
        made = make_packet(journal, rng.choice([280, 340, 700]), now=now)
        assert not names(made) & acknowledged
        if made.sequence is not None and (at_end or rng.random() < 0.5):
            arrived |= names(made)
            on_the_way.append(made)
        if on_the_way and (at_end or rng.random() < 0.5):
            packet = on_the_way.pop(rng.randrange(len(on_the_way)))
            acknowledge(journal, [receipt_of(packet)], now=now)
            acknowledged |= names(packet)
        if at_end and tiles == [4, 4] and made.sequence is None and not on_the_way and made.left == 0 and step > 80:
            break
    whole = Journal.open(journal.path.with_name("whole.sqlite"), ())
    for scene in scenes:
        scene.put(whole)
    everything = names(make_packet(whole, 1 << 16, now=NOW))
    whole.close()
    assert acknowledged == arrived == everything


def test_a_record_takes_a_quarter_of_what_gzipped_geojson_takes_and_half_of_msgpack(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    """With two heads among 35 records; docs/onboard.md has the figures of a full packet."""
    for scene in scenes:
        scene.put(journal)
    made = make_packet(journal, 1 << 16, now=NOW)
    features = [feature for scene in scenes for feature in scene.collection["features"]]
    geojson = len(gzip.compress(msgspec.json.encode(features), 9)) / len(features)
    packed = len(msgspec.msgpack.encode(decode(made.data).groups)) / made.records
    assert len(made.data) / made.records < min(geojson / 4, packed / 2)


@pytest.mark.parametrize(
    ("text", "size"), [("340", 340), ("64KiB", 65536), ("1.5 kB", 1500), ("1MB", 10**6), ("2mib", 2 << 20)]
)
def test_budgets_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_from_text(text) == size


@pytest.mark.parametrize("text", ["", "-5", "0", "64 parsecs", "1e9", "100MiB", "nan"])
def test_a_budget_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        bytes_from_text(text)

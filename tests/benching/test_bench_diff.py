"""`bench diff`: a planted slowdown is found and named, and nothing else is."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from simulated_runs import USUAL_MS, simulated_run

from fusar_edge.bench.diff import ALARM_RATE, Diff, diff
from fusar_edge.bench.observations import Observation
from fusar_edge.errors import InputError


@pytest.mark.parametrize("part", ["raster_read", "vision", "prefix", "prefill", "decode", "write"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_stage_slowed_by_a_fifth_is_found_and_it_alone_is_named(part: str, seed: int) -> None:
    found = diff(simulated_run(seed), simulated_run(seed + 100, {part: 1.2}))
    assert found.alarm
    assert found.culprits == (f"single: {part}",)
    change = next(c for c in found.changes if c.part == part)
    assert change.verdict == "slower"
    assert found.reference_ratio is not None
    assert change.ratio / found.reference_ratio == pytest.approx(1.2, rel=0.05)
    assert change.low < change.ratio < change.high


def test_what_holds_the_slow_stage_is_slower_too_but_not_to_blame() -> None:
    found = diff(simulated_run(1), simulated_run(2, {"decode": 1.5}))
    verdicts = {c.part: c.verdict for c in found.changes}
    assert verdicts["tpot"] == verdicts["tile"] == "slower"
    assert found.culprits == ("single: decode",)


def test_two_slow_stages_are_both_named() -> None:
    found = diff(simulated_run(3), simulated_run(4, {"vision": 1.25, "write": 1.4}))
    assert found.culprits == ("single: vision", "single: write")


def test_ten_repeats_of_the_same_thing_raise_no_alarm() -> None:
    first = simulated_run(20)
    assert [diff(first, simulated_run(21 + i)).culprits for i in range(10)] == [()] * 10


def test_false_alarms_are_as_rare_as_promised_even_for_parts_that_are_just_at_the_threshold() -> None:
    """The worst case that is still no alarm: every part slower by exactly the threshold."""
    runs, alarms = 50, 0
    for seed in range(runs):
        slower = dict.fromkeys(USUAL_MS, 1.05)
        alarms += diff(simulated_run(seed), simulated_run(seed + 1000, slower), threshold=1.05, seed=seed).alarm
    assert alarms <= 3  # binomial(50, ALARM_RATE): more than 3 happens twice in 1,000 times
    assert ALARM_RATE == 0.01


def test_a_slower_machine_is_not_blamed_on_the_code() -> None:
    found = diff(simulated_run(1), simulated_run(2, machine=1.3))
    assert not found.alarm
    assert found.reference_ratio == pytest.approx(1.3, rel=0.05)
    assert all(change.ratio > 1.2 for change in found.changes)  # said as measured


@pytest.mark.parametrize("machine", [1.2, 0.85])
def test_a_slow_stage_is_found_on_a_slower_and_on_a_faster_machine_too(machine: float) -> None:
    assert diff(simulated_run(1), simulated_run(2, {"vision": 1.3}, machine=machine)).culprits == ("single: vision",)


def test_a_kernel_alone_that_got_faster_makes_nothing_look_slow() -> None:
    second = [msgspec.structs.replace(o, ms=o.ms * 0.8) if o.part == "reference" else o for o in simulated_run(2)]
    assert diff(simulated_run(1), second).culprits == ()


def test_a_machine_that_is_never_steady_is_not_judged() -> None:
    random = np.random.default_rng(5)
    level = dict(zip(range(2000), np.exp(np.cumsum(random.normal(0, 0.1, 2000))), strict=True))

    def shaken(run: list[Observation]) -> list[Observation]:
        return [msgspec.structs.replace(one, ms=float(one.ms * level[int(one.at) - 1000])) for one in run]

    found = diff(shaken(simulated_run(1)), simulated_run(2, {"vision": 1.5}))
    assert not found.comparable
    assert not found.alarm
    assert {change.verdict for change in found.changes} == {"unsteady"}
    assert any("too unsteady to judge" in note for note in found.notes)


def test_runs_that_other_work_disturbed_are_not_judged() -> None:
    found = diff(simulated_run(1), simulated_run(2, {"vision": 1.5}), disturbed=["a: other processes took 30%"])
    assert not found.comparable
    assert not found.alarm
    assert {change.verdict for change in found.changes} == {"unsteady"}


def test_what_got_faster_is_said_and_is_no_alarm() -> None:
    found = diff(simulated_run(1), simulated_run(2, {"prefix": 0.7}))
    assert not found.alarm
    assert next(c for c in found.changes if c.part == "prefix").verdict == "faster"


def test_microseconds_are_nobodys_concern() -> None:
    def run(ms: float) -> list[Observation]:
        return [Observation(scenario="single", part="parse", unit_id="tile 0", ms=ms, at=float(i)) for i in range(60)]

    assert not diff(run(0.010), run(0.020)).alarm
    assert diff(run(1.0), run(2.0)).culprits == ("single: parse",)


def test_a_run_too_short_to_find_anything_says_so() -> None:
    found = diff(simulated_run(1, queries=12), simulated_run(2, {"vision": 2.0}, queries=12))
    assert not found.alarm
    assert next(c for c in found.changes if c.part == "vision").verdict == "too few"
    assert any("fewer than 24 observations" in note and "vision" in note for note in found.notes)


def test_parts_of_one_run_alone_are_noted_and_nothing_shared_is_an_error() -> None:
    first = simulated_run(1)
    second = [one for one in simulated_run(2) if one.part != "anchors"]
    assert any("only in the first run: single: anchors" in note for note in diff(first, second).notes)
    with pytest.raises(InputError, match="share no scenario"):
        diff(first, [msgspec.structs.replace(one, scenario="multi") for one in second])
    with pytest.raises(InputError, match="above 1"):
        diff(first, second, threshold=1.0)


def test_warm_up_and_other_candidates_take_no_part() -> None:
    first = simulated_run(1)
    cold = [msgspec.structs.replace(one, ms=one.ms * 9, warm_up=True) for one in first]
    other = [msgspec.structs.replace(one, ms=one.ms * 9, candidate="hf-eager") for one in first]
    assert diff(first, [*simulated_run(2), *cold, *other]) == diff(first, simulated_run(2))


def test_a_diff_can_be_kept_as_json() -> None:
    found = diff(simulated_run(1), simulated_run(2, {"vision": 1.2}))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Diff) == found

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fusar_edge.errors import RecipeError
from fusar_edge.service.onboard.ladder import HOLD_S, SETTLE_S, STALE_S, Ladder, Rung, ladder_from_settings
from fusar_edge.service.onboard.readings import Reading
from fusar_edge.service.pipeline.governor import NoLimits
from fusar_edge.service.settings import ModelSettings, OnboardSettings, ServiceSettings

TASKS = ("caption", "count", "grid", "detect")


class Board:
    """A clock and a sensor that do what the test says; asked every second."""

    def __init__(self, tasks: Sequence[str] = TASKS, **onboard: float) -> None:
        self.now, self.reading, self.asked = 0.0, Reading(40.0, 5.0), 0
        settings = ServiceSettings(
            model=ModelSettings(tasks=tuple(tasks)),
            onboard=OnboardSettings(**onboard),  # type: ignore[arg-type]
        )
        self.ladder = Ladder(settings, self._read, lambda: self.now)

    def _read(self) -> Reading | None:
        self.asked += 1
        return self.reading

    def run(self, seconds: float, reading: Reading | None) -> list[Rung]:
        """The rungs of each second."""
        self.reading = reading  # type: ignore[assignment]
        rungs = []
        for _ in range(round(seconds)):
            self.ladder.limits()
            rungs.append(self.ladder.rung)
            self.now += 1.0
        return rungs


def test_a_cool_board_has_no_limits() -> None:
    board = Board()
    assert set(board.run(100, Reading(60.0, 30.0))) == {Rung.normal}
    assert board.ladder.limits() == NoLimits().limits()


@pytest.mark.parametrize(
    ("celsius", "rung", "tasks", "stride", "paused"),
    [
        (74.9, Rung.normal, None, 1, False),
        (75.0, Rung.fewer, ("count", "grid", "classify", "detect"), 1, False),
        (85.0, Rung.sparse, ("count", "classify", "detect"), 2, False),
        (95.0, Rung.paused, None, 1, True),
    ],
)
def test_heat_sets_the_rung_at_once(
    celsius: float, rung: Rung, tasks: tuple[str, ...] | None, stride: int, paused: bool
) -> None:
    board = Board()
    assert board.run(1, Reading(celsius)) == [rung]
    limits = board.ladder.limits()
    assert (limits.tasks, limits.stride, limits.paused) == (tasks, stride, paused)
    assert (f"{celsius:.1f} C" in limits.reason) == (rung is not Rung.normal)


def test_a_board_that_cools_climbs_down_one_rung_at_a_time_and_late() -> None:
    board = Board()
    board.run(5, Reading(96.0))
    assert set(board.run(100, Reading(93.0))) == {Rung.paused}, "within the margin"
    rungs = board.run(3 * HOLD_S + 5, Reading(50.0))
    lengths = [rungs.count(rung) for rung in (Rung.paused, Rung.sparse, Rung.fewer)]
    assert lengths == [HOLD_S, HOLD_S, HOLD_S]
    assert rungs[-1] is Rung.normal


def test_a_temperature_that_swings_about_a_bound_does_not_make_the_rung_swing() -> None:
    board = Board()
    rungs = [rung for _ in range(60) for rung in (*board.run(3, Reading(75.5)), *board.run(3, Reading(74.5)))]
    assert set(rungs) == {Rung.fewer}


def test_a_short_cool_moment_does_not_count_as_calm() -> None:
    board = Board()
    board.run(1, Reading(76.0))
    for _ in range(10):
        board.run(HOLD_S - 2, Reading(60.0))
        board.run(1, Reading(74.0))
    assert board.ladder.rung is Rung.fewer


def test_power_over_the_budget_climbs_rung_by_rung_to_a_pause_and_back() -> None:
    board = Board(power_w=15.0)
    rungs = board.run(4 * SETTLE_S, Reading(50.0, 20.0))
    assert [rungs.count(rung) for rung in (Rung.fewer, Rung.sparse)] == [SETTLE_S, SETTLE_S]
    assert rungs[-1] is Rung.paused
    assert "20.0 W of 15 W" in board.ladder.limits().reason
    rungs = board.run(300, Reading(50.0, 5.0))
    assert rungs[-1] is Rung.normal
    assert sorted(rungs, reverse=True) == rungs


def test_power_a_little_below_the_budget_keeps_the_rung() -> None:
    board = Board(power_w=15.0)
    board.run(5, Reading(50.0, 20.0))
    board.run(60, Reading(50.0, 14.5))
    rung = board.ladder.rung
    assert rung > Rung.normal
    assert set(board.run(300, Reading(50.0, 14.5))) == {rung}


def test_a_short_peak_of_power_does_not_matter() -> None:
    board = Board(power_w=15.0)
    board.run(60, Reading(50.0, 10.0))
    assert {*board.run(3, Reading(50.0, 25.0)), *board.run(60, Reading(50.0, 10.0))} == {Rung.normal}


def test_without_a_budget_power_does_not_matter() -> None:
    assert set(Board().run(100, Reading(50.0, 500.0))) == {Rung.normal}


def test_the_hotter_cause_decides() -> None:
    board = Board(power_w=15.0)
    board.run(1, Reading(86.0, 20.0))
    assert board.ladder.rung is Rung.sparse
    assert "86.0 C" in board.ladder.limits().reason
    assert " W of" not in board.ladder.limits().reason


@pytest.mark.parametrize("left", [None, Reading(None, 5.0)])
def test_a_sensor_that_falls_silent_is_taken_for_heat(left: Reading | None) -> None:
    board = Board()
    board.run(10, Reading(50.0, 5.0))
    rungs = board.run(STALE_S + 5, left)
    assert set(rungs[: int(STALE_S) - 1]) == {Rung.normal}
    assert rungs[-1] is Rung.sparse
    assert "no sensor has answered for" in board.ladder.limits().reason
    assert board.run(HOLD_S * 3, Reading(50.0, 5.0))[-1] is Rung.normal


def test_a_board_without_sensors_is_never_limited() -> None:
    assert set(Board().run(300, None)) == {Rung.normal}


def test_a_service_of_captions_alone_still_makes_them_on_a_warm_board() -> None:
    board = Board(tasks=("caption",))
    board.run(1, Reading(86.0))
    limits = board.ladder.limits()
    assert (limits.tasks, limits.stride) == (None, 2)


def test_the_sensors_are_read_once_a_second_however_often_the_pipeline_asks() -> None:
    board = Board()
    for _ in range(100):
        board.ladder.limits()
    assert board.asked == 1


@pytest.mark.parametrize("bounds", [{"warm_c": 90.0}, {"hot_c": 95.0}, {"critical_c": 60.0}])
def test_bounds_out_of_order_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"\[onboard\] warm_c"):
        Board(**bounds)


def test_a_log_in_the_settings_is_replayed(tmp_path: Path) -> None:
    log = tmp_path / "hot.jsonl"
    log.write_text('{"t": 0, "temperature_c": 97}\n')
    ladder = ladder_from_settings(ServiceSettings(onboard=OnboardSettings(readings=log)))
    assert ladder.limits().paused

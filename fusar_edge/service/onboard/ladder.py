"""The ladder: the hotter the board, or the longer it draws more than its budget, the less is asked of each scene.

    normal   everything that was asked for
    fewer    no captions: they are the longest texts and the last in the downlink
    sparse   nor grids, and every second tile alone
    paused   nothing; scenes wait, none is lost

Milliseconds per tile on one core, default bundle, three simulated scenes of 16 tiles, tasks caption, count, grid and
detect: 269 normal, 173 fewer, 81 sparse (162 for every second tile).

Temperature sets the rung at once: at `warm_c` fewer, at `hot_c` sparse, at `critical_c` paused; a rung is left
downwards when the board is MARGIN_C cooler than its bound and has been for HOLD_S. Power cannot be mapped like that: an
engine draws the same for one task as for three, so only the share of the time that it works follows the rung. While the
mean of AVERAGE_S is above the budget the ladder climbs one rung in each SETTLE_S, and climbs down when the mean has
been below MARGIN_W of the budget for HOLD_S; in between it stays. Of both rungs the higher holds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from fusar_edge.data.tasks import TASKS
from fusar_edge.errors import RecipeError
from fusar_edge.service.onboard.readings import BoardReadings, Reading, Readings, ReplayedReadings
from fusar_edge.service.pipeline.governor import WorkLimits
from fusar_edge.service.settings import ServiceSettings

log = logging.getLogger(__name__)

READ_S = 1.0
"""A board is asked no more often; limits() may be."""
STALE_S = 60.0
"""Without an answer of its sensors for so long, a board that has some is taken to be hot."""
MARGIN_C, MARGIN_W = 3.0, 0.9
HOLD_S = 30.0
AVERAGE_S = 20.0
SETTLE_S = 20.0


class Rung(IntEnum):
    normal = 0
    fewer = 1
    sparse = 2
    paused = 3


DROPPED = {
    Rung.normal: (),
    Rung.fewer: ("caption",),
    Rung.sparse: ("caption", "grid"),
    Rung.paused: (),
}
"""Tasks that a rung leaves out; none of them where the service asks for nothing else."""


@dataclass
class _Climb:
    """One cause's rung, and since when it could be a lower one."""

    rung: Rung = Rung.normal
    calm_since: float | None = None

    def settle(self, up_to: Rung, calm: bool, now: float) -> None:
        """Up to `up_to` at once; one rung down for each HOLD_S of calm."""
        if up_to > self.rung:
            self.rung, self.calm_since = up_to, None
        elif not calm or self.rung is Rung.normal:
            self.calm_since = None
        elif self.calm_since is None:
            self.calm_since = now
        elif now - self.calm_since >= HOLD_S:
            self.rung, self.calm_since = Rung(self.rung - 1), now


class Ladder:
    """The pipeline's Governor on board. Safe to call from several threads."""

    def __init__(
        self, settings: ServiceSettings, readings: Readings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """RecipeError where the bounds of [onboard] are not in order."""
        onboard = settings.onboard
        bounds = (onboard.warm_c, onboard.hot_c, onboard.critical_c)
        if not bounds[0] < bounds[1] < bounds[2]:
            raise RecipeError(
                f"[onboard] warm_c {bounds[0]:g}, hot_c {bounds[1]:g}, critical_c {bounds[2]:g}: each must be above "
                "the one before it"
            )
        self._bounds = bounds
        self._budget_w = onboard.power_w
        self._tasks = settings.model.tasks
        self._readings, self._clock, self._lock = readings, clock, threading.Lock()
        self._asked_at = self._climbed_at = -math.inf
        self._heat_at = self._power_at = math.inf  # of the last answer; inf: none yet
        self._mean_w: float | None = None
        self._heat, self._power = _Climb(), _Climb()
        self.reading: Reading | None = None
        """The last one; None before the first."""
        self._limits = WorkLimits()

    @property
    def rung(self) -> Rung:
        return max(self._heat.rung, self._power.rung)

    def limits(self) -> WorkLimits:
        """What may be asked now; reads the sensors where the last reading is older than READ_S."""
        with self._lock:
            now = self._clock()
            if now - self._asked_at >= READ_S:
                before = self.rung
                self._take(self._readings(), now)
                self._asked_at = now
                if self.rung != before:
                    log.warning("ladder: %s -> %s (%s)", before.name, self.rung.name, self._limits.reason)
            return self._limits

    def _take(self, reading: Reading | None, now: float) -> None:
        if reading is not None:
            self.reading = reading
            if reading.temperature_c is not None:
                self._settle_heat(reading.temperature_c, now)
            if reading.power_w is not None:
                self._settle_power(reading.power_w, now)
        silent_s = max(now - self._heat_at, now - self._power_at)
        if silent_s > STALE_S:
            self._heat.settle(Rung.sparse, False, now)
        reason = f"{self.rung.name}: {self._cause(silent_s)}" if self.rung else ""
        self._limits = self._limits_of(self.rung, reason)

    def _limits_of(self, rung: Rung, reason: str) -> WorkLimits:
        allowed = tuple(task for task in TASKS if task not in DROPPED[rung])
        tasks = allowed if DROPPED[rung] and set(allowed) & set(self._tasks) else None
        return WorkLimits(tasks, 2 if rung is Rung.sparse else 1, rung is Rung.paused, reason)

    def _settle_heat(self, temperature_c: float, now: float) -> None:
        self._heat_at = now
        up_to = Rung(sum(temperature_c >= bound for bound in self._bounds))
        left = self._bounds[self._heat.rung - 1] - MARGIN_C if self._heat.rung else math.inf
        self._heat.settle(up_to, temperature_c < left, now)

    def _settle_power(self, power_w: float, now: float) -> None:
        """Moves the mean (exponential: readings come at any distance in time), then the rung."""
        keep = math.exp(-max(now - self._power_at, 0.0) / AVERAGE_S) if self._mean_w is not None else 0.0
        self._mean_w = keep * (self._mean_w or 0.0) + (1.0 - keep) * power_w
        self._power_at = now
        if self._budget_w is None:
            return
        if self._mean_w > self._budget_w and now - self._climbed_at >= SETTLE_S:
            self._climbed_at = now
            self._power.settle(Rung(min(self._power.rung + 1, Rung.paused)), False, now)
        else:
            self._power.settle(Rung.normal, self._mean_w < MARGIN_W * self._budget_w, now)

    def _cause(self, silent_s: float) -> str:
        if silent_s > STALE_S:
            return f"no sensor has answered for {silent_s:.0f} s"
        parts = []
        if self._heat.rung == self.rung and self.reading and self.reading.temperature_c is not None:
            parts.append(f"{self.reading.temperature_c:.1f} C")
        if self._power.rung == self.rung and self._mean_w is not None and self._budget_w is not None:
            parts.append(f"{self._mean_w:.1f} W of {self._budget_w:g} W")
        return ", ".join(parts)


def ladder_from_settings(settings: ServiceSettings) -> Ladder:
    """The ladder of `serve --profile onboard`: a replayed log where one is given, else the board's sensors."""
    if settings.onboard.readings is not None:
        return Ladder(settings, ReplayedReadings(settings.onboard.readings))
    board = BoardReadings()
    log.info("sensors: %s", ", ".join(board.sensors) or "none")
    if not board.sensors:
        log.warning("no sensor was found on this board: the ladder stays at normal; [onboard] readings replays a log")
    return Ladder(settings, board)

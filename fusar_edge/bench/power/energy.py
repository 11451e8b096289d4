"""Joules of what was timed: readings of power or of energy counters beside the observations, on one clock.

No rail, no number: where nothing measures power, the reason stands in its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from fusar_edge.bench.observations import Observation, measured
from fusar_edge.bench.samples import Interval, bootstrap_interval
from fusar_edge.errors import DeviceError, EdgeError, InputError

CHOICES = ("auto", "none", "tegrastats", "ina", "nvml", "rapl")
INTERVAL_S = 0.1
FILENAME = "power.jsonl"
LOG = "power.log"
"""A log that was given, copied."""
READINGS_EACH = 5
"""A part that is shorter than so many readings, usually, has no figure: a reading would be of its neighbours too."""
WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed all others: AGX Thor; Orin NX and Nano; the first Nano."""
AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""AGX Orin has no rail for the module: these add up to it. Its VDDQ_VDD2_1V8AO hangs on VIN_SYS_5V0."""
THOR_WITHOUT_INPUT = ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")
"""Thor where the input's monitor is not reported."""

Values = npt.NDArray[np.float64]


class Source(Protocol):
    """Something that measures. `read`: rail -> watts, or joules from any origin, as `unit` says."""

    name: str
    unit: str
    rails: tuple[str, ...]

    def read(self) -> dict[str, float]: ...

    def close(self) -> None: ...


class Trace:
    """Energy of each rail over time, from readings."""

    def __init__(self, source: str, unit: str, times: Sequence[float], readings: Sequence[dict[str, float]]) -> None:
        """`times`: Unix seconds, rising. A rail that some reading lacks is left out of the trace."""
        names = [name for name in readings[0] if all(name in r for r in readings)] if readings else []
        self.source = source
        self.times: Values = np.array(times, np.float64)
        self.joules: dict[str, Values] = {}
        """Cumulative, from the first reading on."""
        for name in names:
            values = np.array([reading[name] for reading in readings])
            if unit == "J":
                self.joules[name] = values - values[0]
            else:
                steps = np.diff(self.times) * (values[1:] + values[:-1]) / 2
                self.joules[name] = np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def interval_s(self) -> float:
        """Usual distance of two readings."""
        return float(np.median(np.diff(self.times))) if len(self.times) > 1 else float("inf")

    def spent(self, rails: Sequence[str], start: float, end: float) -> float | None:
        """Joules of the rails' sum between two instants; None where the readings do not cover them."""
        if len(self.times) < 2 or start < self.times[0] or end > self.times[-1]:
            return None
        return float(sum(np.diff(np.interp([start, end], self.times, self.joules[rail]))[0] for rail in rails))


def module_rails(rails: Iterable[str]) -> tuple[str, ...]:
    """Rails whose sum is the whole that is measured: a Jetson module, all GPUs, all processor packages with memory."""
    have = tuple(rails)
    for whole in WHOLE:
        if whole in have:
            return (whole,)
    for sums in (AGX_ORIN, THOR_WITHOUT_INPUT):
        if all(rail in have for rail in sums):
            return sums
    # RAPL: cores and the like are parts of a package, its memory is not; `psys` holds them all.
    return tuple(rail for rail in have if ("/" not in rail or rail.endswith("/dram")) and rail != "psys")


class Sampler:
    """Reads a source every INTERVAL_S in a thread between `__enter__` and `__exit__`, and once more at each end."""

    def __init__(self, source: Source, interval_s: float = INTERVAL_S) -> None:
        self.source, self._interval_s = source, interval_s
        self.times: list[float] = []
        self.readings: list[dict[str, float]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self.problem = ""

    def __enter__(self) -> Sampler:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._take()
        self.source.close()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._take()

    def _take(self) -> None:
        try:
            reading = self.source.read()
        except Exception as problem:  # a driver that went away: what was read stays, and the report says so
            self.problem = f"{self.source.name} stopped answering ({type(problem).__name__})"
            return
        if reading:
            self.times.append(time.time())
            self.readings.append(reading)

    def trace(self) -> Trace:
        return Trace(self.source.name, self.source.unit, self.times, self.readings)

    def write(self, path: Path) -> None:
        """Raw readings, one JSON line each: t (Unix seconds), W or J by rail."""
        rows = [{"t": t, self.source.unit: reading} for t, reading in zip(self.times, self.readings, strict=True)]
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def open_source(choice: str) -> tuple[Source | None, str]:
    """A source by name, and why there is none; `auto` takes the first that answers, in the order of detail.

    DeviceError or MissingExtraError where a source that was asked for by name does not answer.
    """
    makers = _makers()
    if choice == "none":
        return None, "power was not asked for (--power none)"
    if choice != "auto":
        if choice not in makers:
            raise InputError(f"--power {choice}: allowed are {', '.join(CHOICES)}, or a log of tegrastats")
        return makers[choice](), ""
    reasons = []
    for make in makers.values():
        try:
            return make(), ""
        except (DeviceError, EdgeError) as problem:
            reasons.append(str(problem))
    return None, "; ".join(reasons)


def _makers() -> dict[str, Callable[[], Source]]:
    from fusar_edge.bench.power.ina import Ina
    from fusar_edge.bench.power.nvml import Nvml
    from fusar_edge.bench.power.rapl import Rapl
    from fusar_edge.bench.power.tegrastats import Tegrastats

    return {"ina": Ina, "tegrastats": Tegrastats, "nvml": Nvml, "rapl": Rapl}


def trace_from_log(path: Path) -> Trace:
    """A log that tegrastats recorded during the run, on the same machine."""
    from fusar_edge.bench.power.tegrastats import lines_from_log

    lines = lines_from_log(path)
    return Trace(f"tegrastats log {path.name}", "W", [line.at or 0.0 for line in lines], [line.watts for line in lines])


class Energy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Energy figures of a run; joules, gross: what the rails drew, idle included."""

    source: str
    rails: tuple[str, ...]
    """All that were read."""
    whole: tuple[str, ...]
    """Whose sum the figures below are of."""
    interval_ms: float
    idle_w: float | None = None
    """Before the first tile."""
    mean_w: float | None = None
    """While tiles were worked on."""
    tile_j: Interval | None = None
    answer_j: dict[str, Interval] = {}
    """Task -> one answer of it. The tile's vision and prefix, once for all its questions, are not in it."""
    token_j: Interval | None = None
    """Each further token of an answer."""
    rails_tile_j: dict[str, float] = {}
    """Mean of a tile on each rail alone; parts of each other on some boards."""
    notes: tuple[str, ...] = ()


def energy_figures(
    trace: Trace, observations: Iterable[Observation], *, scenario: str, idle: tuple[float, float] | None = None
) -> Energy:
    """Energy of the tiles, answers and tokens of a scenario. `idle`: start and end of the rest before it."""
    chosen = list(measured(observations, scenario))
    whole = module_rails(trace.joules)
    tiles = [one for one in chosen if one.part == "tile"]
    spent = {id(one): trace.spent(whole, one.start, one.at) for one in chosen}
    covered = [(one, j) for one in tiles if (j := spent[id(one)]) is not None]
    notes = []
    if len(covered) < len(tiles):
        notes.append(f"{len(tiles) - len(covered)} of {len(tiles)} tiles lie outside the readings and are left out")
    if tiles and trace.interval_s > _usual_s(tiles):
        notes.append(
            "readings are further apart than tiles: a tile's figure is interpolated, the mean of many is sound"
        )
    joules = [j for _, j in covered]
    groups: dict[str, list[Observation]] = {"token": [one for one in chosen if one.part == "decode"]}
    for one in chosen:
        if one.part == "answer":
            groups.setdefault(one.unit_id.partition("/")[2], []).append(one)
    short = [name for name, own in groups.items() if own and _usual_s(own) < READINGS_EACH * trace.interval_s]
    if short:
        notes.append(
            f"no figure for {', '.join(sorted(short))}: shorter than {READINGS_EACH} readings "
            f"({READINGS_EACH * trace.interval_s:.3g} s), each of which is of the neighbours too"
        )
    energies = {
        name: [(j, one.tokens) for one in own if (j := spent[id(one)]) is not None]
        for name, own in groups.items()
        if name not in short
    }
    decoded = energies.pop("token", [])
    answers = {task: [j for j, _ in own] for task, own in energies.items()}
    seconds = sum(one.ms for one, _ in covered) / 1e3
    rest = trace.spent(whole, *idle) if idle else None
    return Energy(
        source=trace.source,
        rails=tuple(trace.joules),
        whole=whole,
        interval_ms=trace.interval_s * 1e3,
        idle_w=rest / (idle[1] - idle[0]) if idle and rest is not None else None,
        mean_w=sum(joules) / seconds if seconds else None,
        tile_j=_mean(joules),
        answer_j={task: mean for task, values in answers.items() if (mean := _mean(values))},
        token_j=_per_token(decoded),
        rails_tile_j={
            rail: float(np.mean([trace.spent([rail], one.start, one.at) or 0.0 for one, _ in covered]))
            for rail in trace.joules
            if covered
        },
        notes=tuple(notes),
    )


def _usual_s(own: Sequence[Observation]) -> float:
    return float(np.median([one.ms for one in own])) / 1e3


def _mean(values: Sequence[float]) -> Interval | None:
    return bootstrap_interval([values], lambda x: float(np.mean(x))) if values else None


def _per_token(decoded: Sequence[tuple[float, int]]) -> Interval | None:
    """Joules of all answers over their tokens: longer answers count more."""
    if not decoded:
        return None
    joules, tokens = zip(*decoded, strict=True)
    return bootstrap_interval([joules, tokens], lambda j, n: float(j.sum() / n.sum()))

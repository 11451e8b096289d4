"""The raw numbers of a run: a line of JSON for each thing that was timed. Every figure of a report comes from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO

import msgspec

from fusar_edge.errors import InputError

FILENAME = "observations.jsonl"


class Observation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One timed part of one unit of work."""

    scenario: str
    """single, multi, offline, live; compare; accuracy runs are not timed."""
    part: str
    """fusar_edge.bench.timing.PARTS, or `query` (what the scenario is judged by), or `reference` (a fixed kernel)."""
    unit_id: str
    """What was worked on: `tile 3`, `tile 3/count` (the question too), `query 12`. Same work, same name."""
    ms: Annotated[float, msgspec.Meta(ge=0)]
    at: float
    """Unix seconds at its end."""
    tokens: int = 0
    """Tokens that it made, where it made any."""
    candidate: str = ""
    """Who did it, in a comparison."""
    warm_up: bool = False
    """Before the run was warm: kept here, in no figure."""

    @property
    def start(self) -> float:
        """Unix seconds."""
        return self.at - self.ms / 1e3


class ObservationWriter:
    """Keeps every observation in memory and in a file, in the order that they came."""

    def __init__(self, path: Path) -> None:
        self.observations: list[Observation] = []
        self._path = path
        self._file: BinaryIO | None = None
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> ObservationWriter:
        self._file = open(self._path, "wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, observations: Iterable[Observation]) -> None:
        """After the clock has stopped: writing is not part of what is timed."""
        assert self._file is not None, "use it in a `with` block"
        for observation in observations:
            self.observations.append(observation)
            self._file.write(self._encoder.encode(observation) + b"\n")


def read_observations(path: Path) -> list[Observation]:
    """InputError, with the line, where the file is not one of ours."""
    path = path / FILENAME if path.is_dir() else path
    decoder = msgspec.json.Decoder(Observation)
    found = []
    try:
        rows = path.read_bytes().splitlines()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}); give a folder of `fusar-edge bench`") from None
    for number, row in enumerate(rows, 1):
        try:
            found.append(decoder.decode(row))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise InputError(f"{path}, line {number}: {problem}; run the benchmark again") from None
    return found


def measured(
    observations: Iterable[Observation], scenario: str | None = None, part: str | None = None
) -> Iterator[Observation]:
    """Those that figures are made of: without the warm-up."""
    for one in observations:
        if not one.warm_up and scenario in (None, one.scenario) and part in (None, one.part):
            yield one

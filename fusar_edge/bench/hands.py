"""Candidates at work, each in a process of its own, on the same tiles."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from fusar_edge import errors
from fusar_edge.bench.machine import peak_memory_mib
from fusar_edge.bench.peer import Floats, Peer, PeerAnswer, Question, make_peer
from fusar_edge.bench.workload import Workload
from fusar_edge.errors import EdgeError
from fusar_edge.runtime.bundle import Bundle, open_bundle


@dataclass(frozen=True)
class Tile:
    """What all candidates are given."""

    grey: Floats
    """[S, S] in 0..1."""
    anchors: Any | None
    positions: Floats | None
    """[A, 2] (y, x)."""
    questions: tuple[Question, ...]


@dataclass
class Told:
    """What one candidate did."""

    name: str
    precision: str
    compared: str
    answers: list[tuple[int, PeerAnswer]] = field(default_factory=list)
    """(tile, answer), in the order of the rounds: same places in all candidates are pairs."""
    memory_mib: float = 0.0


class Hand(Protocol):
    """A candidate at work, wherever it runs."""

    told: Told

    def answer(self, tile: int) -> PeerAnswer: ...

    def close(self) -> None: ...


def tiles_of(work: Workload, bundle: Bundle) -> list[Tile]:
    """The workload's tiles as arrays. `classify` is asked about the first of `boxes` in the tile, if there is one."""
    from fusar_edge.runtime.detections import tile_box
    from fusar_edge.runtime.tile import Tile as RuntimeTile

    found, settings = [], bundle.settings
    for index, window in enumerate(work.windows):
        tile = RuntimeTile(work.scene, index, window, settings.coordinate_size)
        tile.prepare(work.scene, work.look_up, settings)
        assert tile.input is not None
        questions = []
        for task in work.tasks:
            inside = None
            if task == "classify":
                places = [tile_box(box, window, float(settings.coordinate_size)) for box in work.boxes or ()]
                inside = next((p for p in places if _centre_inside(p, settings.coordinate_size)), None)
                if inside is None:
                    continue
            text = bundle.prompts.question(task, work.label, inside)
            questions.append((task, text, settings.max_new_tokens.get(task, 64)))
        found.append(Tile(tile.input.grey, tile.input.anchors, tile.input.positions, tuple(questions)))
    return found


def _centre_inside(box: tuple[float, float, float, float], size: int) -> bool:
    x1, y1, x2, y2 = box
    return 0 <= (x1 + x2) / 2 < size and 0 <= (y1 + y2) / 2 < size


class Elsewhere:
    """A candidate in its own process, which a pipe tells what to do."""

    def __init__(self, name: str, bundle: Bundle, tiles: Sequence[Tile], threads: int, work: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child would share ONNX Runtime's and torch's threads
        self._pipe, theirs = context.Pipe()
        folder = bundle.folder.absolute()
        self._process = context.Process(target=_work, args=(theirs, name, folder, threads, work), daemon=True)
        self._process.start()
        theirs.close()
        self.told = Told(name, "", "tile")
        self._pipe.send(list(tiles))
        self.told.precision, self.told.compared = self._reply()

    def answer(self, tile: int) -> PeerAnswer:
        self._pipe.send(tile)
        answer, self.told.memory_mib = self._reply()
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self._pipe.send(None)
        self._process.join(10.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _reply(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join(10.0)
            raise EdgeError(
                f"{self.told.name}: its process ended with exit code {self._process.exitcode}; is there memory enough?"
            ) from None
        if kind == "done":
            return value
        made = getattr(errors, kind, EdgeError)
        raise (made if made is not errors.BusyError else EdgeError)(f"{self.told.name}: {value}")


def _work(pipe: Connection, name: str, folder: Path, threads: int, work: Path) -> None:
    """The other process: opens the peer, then answers tile after tile until it is told None."""
    peer: Peer | None = None
    try:
        tiles: list[Tile] = pipe.recv()
        peer = make_peer(name)
        peer.open(open_bundle(folder), threads, work)
        pipe.send(("done", (peer.precision, peer.compared)))
        while (index := pipe.recv()) is not None:
            tile = tiles[index]
            answer = peer.answer(tile.grey, tile.anchors, tile.positions, tile.questions)
            pipe.send(("done", (answer, peak_memory_mib())))
    except (EOFError, KeyboardInterrupt):
        pass
    except EdgeError as problem:
        pipe.send((type(problem).__name__, str(problem)))
    except Exception as problem:
        pipe.send(("EdgeError", f"{type(problem).__name__}: {problem}"))
    finally:
        if peer is not None:
            peer.close()

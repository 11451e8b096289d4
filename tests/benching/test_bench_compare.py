"""Comparison: pairs in turns, ratios that hold the truth, accuracy beside them, a process for each candidate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_parts import default_session, small_workload

from fusar_edge.bench import compare as module
from fusar_edge.bench.compare import LEAST_PAIRS, Comparison, compare
from fusar_edge.bench.hands import Elsewhere, Tile, Told, tiles_of
from fusar_edge.bench.machine import peak_memory_mib
from fusar_edge.bench.observations import Observation, ObservationWriter
from fusar_edge.bench.peer import OURS, Ours, PeerAnswer, make_peer
from fusar_edge.errors import BundleError, EdgeError, InputError
from fusar_edge.runtime.session import Session

TILES = [Tile(np.zeros((4, 4), np.float32), None, None, (("count", "how many?", 8),)) for _ in range(4)]


class FakeHand:
    """Takes `ms` for a tile (three times as long for the last), 10 ms for a token; says `ids`."""

    def __init__(self, name: str, ms: float, ids: tuple[int, ...], compared: str = "tile") -> None:
        self.told = Told(name, "fp32", compared)
        self.random = np.random.default_rng(len(name))
        self.ms, self.ids, self.closed, self.order = ms, ids, False, list[int]()

    def answer(self, tile: int) -> PeerAnswer:
        self.order.append(tile)
        noise = float(np.exp(self.random.normal(0, 0.05)))
        ms = {"decode": self.ms / 10 * noise * 5}
        if self.told.compared == "tile":
            ms["tile"] = self.ms * noise * (3 if tile == 3 else 1)
        return PeerAnswer((self.ids,), ("text",), ms, 5)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ObservationWriter]:
    with ObservationWriter(tmp_path / "observations.jsonl") as writer:
        yield writer


def compared(writer: ObservationWriter, hands: list[FakeHand], monkeypatch: Any, seconds: float = 1e9) -> Comparison:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    by_name = {hand.told.name: hand for hand in hands}
    names = [name for name in by_name if name != OURS]
    return compare(
        None,  # type: ignore[arg-type]
        TILES,
        names,
        writer,
        threads=2,
        work=Path(),
        seconds=seconds,
        open_hand=by_name.__getitem__,
    )


def test_ratios_are_found_with_their_interval(writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    hands = [
        FakeHand(OURS, 100.0, (1, 2, 3)),
        FakeHand("hf-eager", 320.0, (1, 2, 4)),
        FakeHand("slow", 90.0, (1, 2, 4)),
    ]
    found = compared(writer, hands, monkeypatch)
    rows = {row.name: row for row in found.candidates}
    ratio = rows["hf-eager"].tile_ratio
    assert ratio is not None
    assert ratio.low < 3.2 < (ratio.high or 0)
    assert ratio.share <= module.SHARE
    assert rows[OURS].tile_ratio is None
    assert rows["slow"].tile_ratio is not None
    assert rows["slow"].tile_ratio.value < 1
    assert found.met
    assert found.pairs >= LEAST_PAIRS
    assert all(hand.closed for hand in hands)


def test_answers_are_held_against_the_fp32_candidate(
    writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = [FakeHand(OURS, 100.0, (1, 2, 3, 9)), FakeHand("ort-loop", 150.0, (1, 2, 4)), FakeHand("x", 9.0, (1, 2, 4))]
    found = compared(writer, hands, monkeypatch)
    rows = {row.name: row for row in found.candidates}
    assert found.reference == "ort-loop"
    assert (rows[OURS].tokens_agree, rows[OURS].answers_same) == (0.5, 0.0)
    assert (rows["x"].tokens_agree, rows["x"].answers_same) == (1.0, 1.0)


def test_a_candidate_that_only_decodes_is_compared_by_the_token(
    writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = [FakeHand(OURS, 100.0, (1,)), FakeHand("llama.cpp", 120.0, (5, 6), compared="decode")]
    row = compared(writer, hands, monkeypatch).candidates[1]
    assert row.tile_ms is row.tile_ratio is row.tokens_agree is None
    assert row.token_ratio is not None
    assert row.token_ratio.low < 1.2 < (row.token_ratio.high or 0)


def test_candidates_take_turns_tile_by_tile_after_a_warm_up(
    writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    hands = [FakeHand(OURS, 100.0, (1,)), FakeHand("b", 100.0, (1,))]
    compared(writer, hands, monkeypatch)
    assert hands[0].order == hands[1].order
    assert hands[0].order[:6] == [0, 1, 2, 3, 0, 1]
    seen = [one for one in writer.observations if one.part == "tile"]
    assert [one.warm_up for one in seen[:9]] == [True] * 8 + [False]
    pairs = [{a.candidate, b.candidate} for a, b in zip(seen[8::2], seen[9::2], strict=True)]
    assert pairs == [{OURS, "b"}] * len(pairs)
    assert {one.candidate for one in seen[8::2]} == {OURS, "b"}  # the order is drawn anew


def test_a_candidate_that_fails_closes_all_and_is_named(
    writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FakeHand):
        def answer(self, tile: int) -> PeerAnswer:
            raise EdgeError("b: out of memory")

    hands = [FakeHand(OURS, 1.0, (1,)), Broken("b", 1.0, (1,))]
    with pytest.raises(EdgeError, match="b: out of memory"):
        compared(writer, hands, monkeypatch)
    assert all(hand.closed for hand in hands)


@pytest.fixture(scope="module")
def session() -> Session:
    return default_session()


@pytest.fixture(scope="module")
def tiles(session: Session, tmp_path_factory: pytest.TempPathFactory) -> list[Tile]:
    with small_workload(session, tmp_path_factory.mktemp("work"), ("count", "classify")) as workload:
        return tiles_of(workload, session.bundle)[:2]


def test_our_own_candidate_says_in_its_process_what_it_says_here(
    session: Session, tiles: list[Tile], tmp_path: Path
) -> None:
    hand = Elsewhere(OURS, session.bundle, tiles, 1, tmp_path)
    try:
        there = hand.answer(1)
        assert hand.told.precision == session.bundle.settings.precision
        assert hand.told.memory_mib > 20
    finally:
        hand.close()
    here = Ours()
    here.open(session.bundle, 1, tmp_path)
    tile = tiles[1]
    answer = here.answer(tile.grey, tile.anchors, tile.positions, tile.questions)
    assert (there.ids, there.texts) == (answer.ids, answer.texts)
    assert {"tile", "vision", "prefix", "prefill", "decode"} == set(there.ms)
    assert sum(ms for part, ms in there.ms.items() if part != "tile") <= there.ms["tile"]
    here.close()


def test_errors_of_another_process_come_back_as_what_they_are(
    session: Session, tiles: list[Tile], tmp_path: Path
) -> None:
    gone = Session.__new__(Session)  # a bundle whose folder is not there
    gone.bundle = type(session.bundle)(**{**vars(session.bundle), "folder": tmp_path / "none"})
    with pytest.raises(BundleError, match=r"ours: .*not a bundle"):
        Elsewhere(OURS, gone.bundle, tiles, 1, tmp_path)


def test_an_unknown_candidate_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InputError, match="hf-eager"):
        make_peer("pytorch-lightning")


def test_observations_of_candidates_carry_their_name(
    writer: ObservationWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(writer, [FakeHand(OURS, 1.0, (1,)), FakeHand("b", 1.0, (1,))], monkeypatch)
    kinds = {(one.scenario, one.candidate) for one in writer.observations}
    assert kinds == {("compare", OURS), ("compare", "b")}
    assert all(isinstance(one, Observation) and one.tokens == 5 for one in writer.observations if one.part == "decode")


def test_what_the_parent_holds_is_not_a_candidate_s_memory() -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system has no /proc")
    held = np.ones(300 << 17)  # 300 MiB
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert 5 < pool.apply(peak_memory_mib) < 250
    assert peak_memory_mib() > held.nbytes / 2**20

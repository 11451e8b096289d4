"""Candidates on the same tiles in one run, in turns, as ratios with intervals; accuracy beside speed.

Every candidate lives in a process of its own, so that one's threads, allocator and imports are not another's. Only one
works at a time. In each round every tile goes to all candidates before the next tile does, in an order drawn anew: what
the machine does meanwhile meets them alike. A ratio is that of a pair: the same tile, in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from fusar_edge.bench.hands import Elsewhere, Hand, Tile, Told
from fusar_edge.bench.observations import Observation, ObservationWriter
from fusar_edge.bench.peer import OURS, PeerAnswer
from fusar_edge.bench.samples import Interval, quantile_interval, ratio_interval
from fusar_edge.runtime.bundle import Bundle

SCENARIO = "compare"
ANSWERS = "answers.jsonl"
"""What each candidate said of each tile: one JSON line each, with tokens and texts."""
SETTLE_S = 0.05
"""Before a candidate works: thread pools of the last one spin for some milliseconds after their work."""
LEAST_PAIRS = 12
LEAST_ROUNDS = 3
"""Intervals of ratios are over rounds."""
SHARE = 0.03
"""Half width of a ratio's interval over the ratio, at which it is narrow enough."""
REFERENCES = ("hf-eager", "ort-loop")
"""FP32 candidates whose tokens the others are held against: the first of them in the run."""

Progress = Callable[[int, int, str], None]


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One row of the comparison."""

    name: str
    precision: str
    compared: str
    memory_mib: float
    """Largest resident memory of its process."""
    tile_ms: Interval | None
    """Median."""
    tile_ratio: Interval | None
    """Its time over ours; above 1: we are faster. None for ours, and where only decoding may be compared."""
    parts_ms: dict[str, float]
    """Median of what it can tell apart."""
    token_ms: Interval | None
    """Decoding, one token: median over tiles."""
    token_ratio: Interval | None
    tokens: int
    """Decoded in all."""
    tokens_agree: float | None
    """Share of tokens that are the reference's, place by place. Greedy: one other token changes all that follow it."""
    answers_same: float | None
    """Share of answers that are the reference's."""


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    candidates: tuple[Candidate, ...]
    reference: str
    """FP32 candidate of the same weights that answers are held against; "": none took part."""
    pairs: int
    rounds: int
    tiles: int
    seconds: float
    threads: int
    met: bool
    """Every ratio is as narrow as SHARE wants."""


def compare(
    bundle: Bundle,
    tiles: Sequence[Tile],
    against: Sequence[str],
    writer: ObservationWriter,
    *,
    threads: int,
    work: Path,
    seconds: float = 120.0,
    seed: int = 0,
    progress: Progress | None = None,
    open_hand: Callable[[str], Hand] | None = None,
    answers: Path | None = None,
) -> Comparison:
    """Ours and `against`, in turns; what was said goes to the file `answers`.

    `open_hand`: where candidates run (tests: in this process).
    """
    hands: list[Hand] = []
    make = open_hand or (lambda name: Elsewhere(name, bundle, tiles, threads, work))
    try:
        for name in dict.fromkeys((OURS, *against)):
            if progress:
                progress(0, LEAST_PAIRS, f"opening {name}")
            hands.append(make(name))
        made = _in_turns(hands, len(tiles), writer, threads, seconds, seed, progress)
        if answers is not None:
            _write_answers(answers, [hand.told for hand in hands])
        return made
    finally:
        for hand in hands:
            hand.close()


def _in_turns(
    hands: Sequence[Hand],
    tiles: int,
    writer: ObservationWriter,
    threads: int,
    seconds: float,
    seed: int,
    progress: Progress | None,
) -> Comparison:
    random = np.random.default_rng(seed)
    for hand in hands:
        for tile in range(tiles):
            writer.add(_observations(hand.told.name, tile, hand.answer(tile), warm_up=True))
    start, rounds = time.perf_counter(), 0
    while True:
        for tile in range(tiles):
            for index in random.permutation(len(hands)):
                time.sleep(SETTLE_S)
                hand = hands[index]
                answer = hand.answer(tile)
                hand.told.answers.append((tile, answer))
                writer.add(_observations(hand.told.name, tile, answer))
        rounds += 1
        made = _comparison([hand.told for hand in hands], rounds, tiles, time.perf_counter() - start, threads)
        if progress:
            progress(made.pairs, max(LEAST_PAIRS, made.pairs), "comparing")
        enough = made.pairs >= LEAST_PAIRS and rounds >= LEAST_ROUNDS
        if enough and (made.met or made.seconds >= seconds):
            return made


def _write_answers(path: Path, told: Sequence[Told]) -> None:
    """Greedy answers repeat: the first of a tile is kept."""
    rows = [
        {"candidate": one.name, "tile": tile, "ids": answer.ids, "texts": answer.texts}
        for one in told
        for tile, answer in dict(reversed(one.answers)).items()
    ]
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def _observations(name: str, tile: int, answer: PeerAnswer, warm_up: bool = False) -> list[Observation]:
    now = time.time()
    return [
        Observation(
            scenario=SCENARIO,
            part=part,
            unit_id=f"tile {tile}",
            ms=ms,
            at=now,
            tokens=answer.decode_tokens if part == "decode" else 0,
            candidate=name,
            warm_up=warm_up,
        )
        for part, ms in answer.ms.items()
    ]


def _comparison(told: Sequence[Told], rounds: int, tiles: int, seconds: float, threads: int) -> Comparison:
    ours = told[0]
    reference = next((one for name in REFERENCES for one in told if one.name == name), None)
    rows = [_row(one, ours, reference, tiles) for one in told]
    ratios = [ratio for row in rows for ratio in (row.tile_ratio, row.token_ratio) if ratio is not None]
    return Comparison(
        candidates=tuple(rows),
        reference=reference.name if reference else "",
        pairs=len(ours.answers),
        rounds=rounds,
        tiles=tiles,
        seconds=seconds,
        threads=threads,
        met=all(ratio.share <= SHARE for ratio in ratios),
    )


def _row(one: Told, ours: Told, reference: Told | None, tiles: int) -> Candidate:
    whole = one.compared == "tile"
    mine, his = [a.ms["tile"] for _, a in ours.answers], [a.ms.get("tile", 0.0) for _, a in one.answers]
    pairs = [(_token_ms(a), _token_ms(b)) for (_, a), (_, b) in zip(one.answers, ours.answers, strict=True)]
    rounds = [place // tiles for place in range(len(pairs))]
    tokens = [(a, b, r) for (a, b), r in zip(pairs, rounds, strict=True) if a and b]
    agree, same = _agreement(one, reference) if reference else (None, None)
    names = dict.fromkeys(name for _, answer in one.answers for name in answer.ms)
    return Candidate(
        name=one.name,
        precision=one.precision,
        compared=one.compared,
        memory_mib=one.memory_mib,
        tile_ms=quantile_interval(his, 0.5) if whole else None,
        tile_ratio=ratio_interval(his, mine, rounds) if whole and one is not ours else None,
        parts_ms={name: float(np.median([a.ms[name] for _, a in one.answers if name in a.ms])) for name in names},
        token_ms=quantile_interval([a for a, _, _ in tokens], 0.5) if tokens else None,
        token_ratio=ratio_interval(*zip(*tokens, strict=True)) if tokens and one is not ours else None,
        tokens=sum(answer.decode_tokens for _, answer in one.answers),
        tokens_agree=agree,
        answers_same=same,
    )


def _token_ms(answer: PeerAnswer) -> float:
    """0 where nothing was decoded, or it cannot be told apart."""
    return answer.ms.get("decode", 0.0) / answer.decode_tokens if answer.decode_tokens else 0.0


def _agreement(one: Told, reference: Told) -> tuple[float, float]:
    """Shares of tokens and of answers that are the reference's. Greedy answers repeat: the first of a tile counts."""
    right = dict(reversed(reference.answers))
    said = dict(reversed(one.answers))
    pairs = [pair for tile, answer in said.items() for pair in zip(answer.ids, right[tile].ids, strict=True)]
    places = sum(max(len(a), len(b)) for a, b in pairs)
    equal = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    return equal / places if places else 1.0, sum(a == b for a, b in pairs) / len(pairs)

"""The ladder drives the real pipeline, and what that leaves in the journal goes down."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from downlink_scenes import SimulatedScene

from fusar_edge.runtime.bundle import open_bundle
from fusar_edge.service.journal import Journal
from fusar_edge.service.onboard.downlink import make_packet
from fusar_edge.service.onboard.ground import read_packet
from fusar_edge.service.onboard.ladder import HOLD_S, Ladder, Rung
from fusar_edge.service.onboard.readings import Reading
from fusar_edge.service.pipeline import Pipeline, WorkLimits
from fusar_edge.service.settings import ModelSettings, ServiceSettings, TriageSettings

PATIENCE_S = 60.0


class Watched(Ladder):
    """Says when the pipeline has asked so often that it would have begun by now."""

    asked, enough = 0, 12
    often: threading.Event

    def limits(self) -> WorkLimits:
        self.asked += 1
        if self.asked == self.enough:
            self.often.set()
        return super().limits()


@contextmanager
def running(pipeline: Pipeline) -> Iterator[Pipeline]:
    pipeline.start()
    try:
        yield pipeline
    finally:
        pipeline.stop()


def test_a_hot_board_waits_a_warm_one_does_less_and_the_results_go_down(
    scenes: list[SimulatedScene], journal: Journal
) -> None:
    model, now, celsius = ModelSettings(workers=1, threads=1), [0.0], [97.0]
    ladder = Watched(ServiceSettings(model=model), lambda: Reading(celsius[0]), lambda: now[0])
    ladder.often = threading.Event()
    ended = threading.Event()
    journal.on_event(lambda: ended.set() if journal.counts()["scenes"]["done"] else None)
    row, _ = journal.accept(scenes[0].new)

    def pipeline() -> Pipeline:
        return Pipeline(open_bundle("default"), journal, model, TriageSettings(mode="nodata"), ladder)

    with running(pipeline()) as paused:
        assert ladder.often.wait(PATIENCE_S)
        assert paused.status().limits.paused
        assert journal.done_tiles(row.id) == set()
    celsius[0] = 80.0
    for _ in range(3):
        now[0] += HOLD_S + 1.0
        ladder.limits()
    assert ladder.rung is Rung.fewer
    with running(pipeline()):
        assert ended.wait(PATIENCE_S)
    asked = {feature["properties"]["task"] for outcome in journal.tiles(row.id) for feature in outcome.features}
    assert asked == {"count", "grid", "detect"}
    made = make_packet(journal, 1 << 16)
    sent = Counter(f["properties"]["kind"] for f in read_packet(made.data)["features"])
    boxes = [f for f in scenes[0].collection["features"] if f["properties"]["kind"] == "detection"]
    assert sent == {"scene": 1, "detection": len(boxes), "answer": 8}

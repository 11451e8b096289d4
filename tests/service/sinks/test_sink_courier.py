from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from emptied_outbox import PATIENCE_S, Emptied
from journal_scenes import finished, outcome, started, tile_message

from fusar_edge.errors import BusyError
from fusar_edge.service.journal import Journal, Message
from fusar_edge.service.journal.outbox import ALL_KINDS
from fusar_edge.service.sinks import courier as module
from fusar_edge.service.sinks.courier import Courier
from fusar_edge.service.sinks.sink import SinkError

QUICK_S = 0.001


class FakeSink:
    """Takes what `answer` lets it take."""

    name = "fake"
    kinds = ALL_KINDS

    def __init__(self) -> None:
        self.settle_s, self.way = 0.0, object()
        self.batches: list[list[str]] = []
        self.answer: Callable[[Sequence[Message]], None] = lambda messages: None
        self.heard = threading.Condition()
        self.interrupted, self.closed_by = False, ""

    def send(self, messages: Sequence[Message]) -> None:
        with self.heard:
            self.batches.append([message.key for message in messages])
            self.heard.notify_all()
        self.answer(messages)

    def line(self) -> object:
        return self.way

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed_by = threading.current_thread().name

    def wait_for(self, batches: int) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.batches) >= batches, PATIENCE_S), self.batches


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


@pytest.fixture
def emptied(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Emptied:
    return Emptied(journal, "fake", monkeypatch)


@pytest.fixture
def courier(journal: Journal, sink: FakeSink) -> Iterator[Courier]:
    thread = Courier(journal, sink, first_wait_s=QUICK_S)
    yield thread
    thread.stop()
    assert not thread.is_alive()


def test_messages_are_carried_once_and_in_order(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied
) -> None:
    scene_id = finished(journal, tiles=100)
    courier.start()
    emptied.wait()
    keys = [f"{scene_id}/{index}" for index in range(100)] + [scene_id]
    assert [key for batch in sink.batches for key in batch] == keys
    assert courier.status().failures == 0


def test_a_message_that_comes_later_wakes_the_courier(
    journal: Journal, sink: FakeSink, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = started(journal)
    idle, next_due = threading.Event(), journal.next_due

    def asked(name: str) -> float | None:
        idle.set()
        return next_due(name)

    monkeypatch.setattr(journal, "next_due", asked)
    courier.start()
    assert idle.wait(PATIENCE_S)
    journal.tile_done(scene_id, outcome(0), [tile_message(scene_id, 0)])
    sink.wait_for(1)  # far sooner than IDLE_S
    assert sink.batches == [[f"{scene_id}/0"]]


def test_a_sink_that_is_down_is_tried_again_and_then_told_everything(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied
) -> None:
    finished(journal, tiles=2)

    def down(messages: Sequence[Message]) -> None:
        if len(sink.batches) == 4:
            sink.answer = lambda messages: None
        raise SinkError("nobody is there")

    sink.answer = down
    courier.start()
    emptied.wait()
    assert len(sink.batches) == 5
    assert len({tuple(batch) for batch in sink.batches}) == 1
    assert journal.counts()["dead_messages"] == {}


def test_of_a_batch_that_was_taken_in_part_only_the_rest_is_sent_again(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied
) -> None:
    scene_id = finished(journal, tiles=3)

    def half(messages: Sequence[Message]) -> None:
        sink.answer = lambda messages: None
        raise SinkError("lost", sent=[messages[0].key, messages[2].key])

    sink.answer = half
    courier.start()
    emptied.wait()
    assert sink.batches[1] == [f"{scene_id}/1", scene_id]


def test_a_refused_message_dies_after_five_tries_and_does_not_hold_up_the_others(
    journal: Journal, sink: FakeSink, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_id = finished(journal, tiles=2)
    bad, buried, bury = f"{scene_id}/0", threading.Event(), journal.bury

    def refuse(messages: Sequence[Message]) -> None:
        keys = [message.key for message in messages]
        if bad in keys:
            raise SinkError("403", sent=[key for key in keys if key != bad], refused={bad: "403 Forbidden"})

    def burying(name: str, key: str, reason: str) -> None:
        bury(name, key, reason)
        buried.set()

    sink.answer = refuse
    monkeypatch.setattr(journal, "bury", burying)
    courier.start()
    assert buried.wait(PATIENCE_S)
    assert [batch for batch in sink.batches if bad in batch][1:] == [[bad]] * (module.REFUSALS - 1)
    dead = journal.dead_messages()
    assert [(d.key, d.attempts, d.reason) for d in dead] == [(bad, 5, "403 Forbidden")]
    assert journal.outbox_count("fake") == 0


def test_what_was_sent_is_not_sent_again_when_the_journal_has_no_room_to_say_so(
    journal: Journal, sink: FakeSink, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(journal, tiles=1)
    deliver, tries, noted = journal.delivered, [0], threading.Event()

    def full(name: str, keys: Sequence[str]) -> None:
        tries[0] += 1
        if tries[0] < 4:
            raise BusyError("no space is left on the disk", QUICK_S)
        deliver(name, keys)
        noted.set()

    monkeypatch.setattr(journal, "delivered", full)
    courier.start()
    assert noted.wait(PATIENCE_S)
    assert (len(sink.batches), journal.outbox_count("fake")) == (1, 0)


def test_what_was_taken_is_delivered_when_the_line_has_held_for_a_while(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, hold = threading.Event(), journal.hold

    def holding(name: str, keys: Sequence[str], until: float) -> None:
        hold(name, keys, until)
        held.set()

    monkeypatch.setattr(journal, "hold", holding)
    sink.settle_s = 0.2
    finished(journal, tiles=2)
    courier.start()
    assert held.wait(PATIENCE_S)
    assert journal.outbox_count("fake") == 3
    emptied.wait()
    assert len(sink.batches) == 1


def test_what_a_lost_line_took_last_is_sent_again(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied
) -> None:
    sink.settle_s = 0.2
    first = finished(journal, 0, tiles=1)

    def lose(messages: Sequence[Message]) -> None:
        if len(sink.batches) == 2:
            sink.way = None
            sink.answer = back
            raise SinkError("the broker has gone")

    def back(messages: Sequence[Message]) -> None:
        sink.way = object()

    sink.answer = lose
    courier.start()
    sink.wait_for(1)
    second = finished(journal, 1, tiles=1)
    emptied.wait()
    again = [key for batch in sink.batches[2:] for key in batch]
    assert sorted(again) == sorted([f"{first}/0", first, f"{second}/0", second])


def test_a_service_that_is_killed_sends_what_had_not_settled_again(journal: Journal, sink: FakeSink) -> None:
    scene_id = finished(journal, tiles=1)
    keys = [f"{scene_id}/0", scene_id]
    journal.hold("fake", keys, 1000.0)
    assert journal.due("fake", 10, now=999.0) == []
    assert [message.key for message in journal.due("fake", 10, now=1000.0)] == keys
    assert [message.attempts for message in journal.due("fake", 10, now=1000.0)] == [0, 0]


def test_stopping_in_good_order_counts_what_was_taken_as_delivered(journal: Journal, sink: FakeSink) -> None:
    sink.settle_s = 600.0
    finished(journal, tiles=1)
    courier = Courier(journal, sink)
    courier.start()
    sink.wait_for(1)
    courier.stop(timeout_s=PATIENCE_S)
    assert journal.outbox_count("fake") == 0


def test_a_bug_in_a_sink_does_not_end_its_deliveries(
    journal: Journal, sink: FakeSink, courier: Courier, emptied: Emptied, caplog: pytest.LogCaptureFixture
) -> None:
    finished(journal, tiles=1)

    def bug(messages: Sequence[Message]) -> None:
        sink.answer = lambda messages: None
        raise KeyError("x")

    sink.answer = bug
    courier.start()
    emptied.wait()
    assert "KeyError" in caplog.text


def test_stopping_ends_a_long_wait_and_leaves_the_rest_in_the_journal(journal: Journal, sink: FakeSink) -> None:
    finished(journal, tiles=1)

    def down(messages: Sequence[Message]) -> None:
        raise SinkError("down", retry_after_s=500.0)

    sink.answer = down
    courier = Courier(journal, sink)
    courier.start()
    sink.wait_for(1)
    courier.stop(timeout_s=PATIENCE_S)
    assert not courier.is_alive()
    assert (sink.interrupted, sink.closed_by) == (True, "sink-fake")
    assert journal.outbox_count("fake") == 2
    status = courier.status()
    assert (status.problem, status.failures, status.sent) == ("down", 1, 0)


def test_each_failure_doubles_the_wait_up_to_a_minute_with_jitter(journal: Journal, sink: FakeSink) -> None:
    courier = Courier(journal, sink)
    for failures, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (10_000, 60.0)):
        waits = [courier._wait_s(failures) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert courier._failed("asked", 300.0) == 300.0
    assert courier._failed("asked for too much", 1e9) == module.LONGEST_ASKED_WAIT_S


def test_one_message_at_which_the_receiver_fails_does_not_hold_up_the_others(
    journal: Journal, sink: FakeSink, courier: Courier
) -> None:
    """A receiver that answers 500 to one message and thanks for all others."""
    scene = finished(journal, tiles=6)
    poison = tile_message(scene, 0).key
    taken: set[str] = set()

    def answer(messages: Sequence[Message]) -> None:
        sent: list[str] = []
        for message in messages:
            if message.key == poison:
                raise SinkError("the webhook says 500", sent=sent)
            sent.append(message.key)
            taken.add(message.key)

    sink.answer = answer
    courier.start()
    sink.wait_for(module.STUCK + 1)
    deadline = threading.Event()
    for _ in range(500):
        if len(taken) == 6:
            break
        deadline.wait(0.02)
    assert taken == {tile_message(scene, index).key for index in range(1, 6)} | {scene}

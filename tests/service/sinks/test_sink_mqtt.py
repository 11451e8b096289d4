from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from emptied_outbox import Emptied
from journal_scenes import finished, scene_message, started, tile_message
from mqtt_broker import MOSQUITTO, PATIENCE_S, Broker, Line, Subscriber, free_port

from fusar_edge.errors import InputError
from fusar_edge.service.journal import Journal, Message, TileOutcome
from fusar_edge.service.settings import MqttSettings
from fusar_edge.service.sinks.courier import Courier
from fusar_edge.service.sinks.mqtt import MqttSink
from fusar_edge.service.sinks.sink import SinkError

needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
SCENE = "0123456789abcdef"
MESSAGES = [tile_message(SCENE, index) for index in range(30)]


def payloads(messages: Sequence[Message]) -> set[bytes]:
    return {message.payload for message in messages}


def settings(port: int, **changes: Any) -> MqttSettings:
    return MqttSettings(**{"host": "127.0.0.1", "port": port, "settle_s": 0.0, **changes})


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    made = Subscriber(broker.port)
    yield made
    made.close()


@pytest.fixture
def sink(broker: Broker) -> Iterator[MqttSink]:
    made = MqttSink(settings(broker.port), stalled_s=PATIENCE_S)
    yield made
    made.close()


@needs_mosquitto
def test_messages_reach_a_subscriber_once_under_their_topics(sink: MqttSink, subscriber: Subscriber) -> None:
    messages = [*MESSAGES, scene_message(SCENE)]
    sink.send(messages)
    subscriber.wait_for(payloads(messages))
    topics = [f"fusar-edge/scenes/{SCENE}/tiles/{index}" for index in range(30)] + [f"fusar-edge/scenes/{SCENE}"]
    assert [topic for topic, _, _ in subscriber.got] == topics
    assert [properties for _, _, properties in subscriber.got] == [{"key": message.key} for message in messages]


@needs_mosquitto
def test_a_broker_that_is_frozen_is_given_up_and_told_again_when_it_thaws(
    broker: Broker, subscriber: Subscriber
) -> None:
    sink = MqttSink(settings(broker.port), stalled_s=0.3)
    sink.send(MESSAGES[:5])
    broker.signal(signal.SIGSTOP)
    with pytest.raises(SinkError, match=r"acknowledged nothing for 0\.3 s") as caught:
        sink.send(MESSAGES[5:])
    assert caught.value.sent == ()
    broker.signal(signal.SIGCONT)
    sink.send(MESSAGES[5:])
    subscriber.wait_for(payloads(MESSAGES))
    sink.close()


@needs_mosquitto
def test_a_broker_that_is_slow_but_goes_on_is_waited_for(broker: Broker, subscriber: Subscriber) -> None:
    line = Line(broker.port, pause_s=0.02)
    sink = MqttSink(settings(line.port), stalled_s=0.3)
    sink.send(MESSAGES)  # 30 acknowledgements, 0.6 s
    assert len(subscriber.got) == 30
    sink.close()
    line.close()


@needs_mosquitto
def test_a_message_whose_acknowledgement_was_lost_is_sent_again_with_the_same_key(
    broker: Broker, subscriber: Subscriber
) -> None:
    line = Line(broker.port, silent_after=24)
    sink = MqttSink(settings(line.port))
    with pytest.raises(SinkError, match="has gone") as caught:
        sink.send(MESSAGES)
    line.close()
    left = [message for message in MESSAGES if message.key not in caught.value.sent]
    assert left
    subscriber.wait_for({MESSAGES[0].payload})
    again = MqttSink(settings(broker.port))
    again.send(left)
    subscriber.wait_for(payloads(MESSAGES))
    assert len(subscriber.got) > len(MESSAGES)
    sink.close()
    again.close()


@needs_mosquitto
def test_nothing_is_lost_when_the_broker_is_killed_and_started_again(
    journal: Journal, broker: Broker, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = Emptied(journal, "mqtt", monkeypatch)
    first = finished(journal, 0, tiles=40)
    sink = MqttSink(settings(broker.port))
    courier = Courier(journal, sink, first_wait_s=0.02)
    failed = threading.Event()
    note = courier._failed
    courier._failed = lambda *args: (failed.set(), note(*args))[1]  # type: ignore[method-assign]
    courier.start()
    subscriber.wait_for({tile_message(first, index).payload for index in range(40)} | {scene_message(first).payload})
    emptied.wait()
    emptied.clear()
    broker.kill()
    second = finished(journal, 1, tiles=40)
    assert failed.wait(PATIENCE_S)
    assert courier.status().problem
    broker.start()
    expected = {tile_message(scene, index).payload for scene in (first, second) for index in range(40)}
    subscriber.wait_for(expected | {scene_message(scene).payload for scene in (first, second)})
    emptied.wait()
    courier.stop()
    heard = subscriber.payloads()
    assert len(heard) <= 82 + 64  # again at most the batch that was on its way


@needs_mosquitto
def test_what_a_broker_took_and_forgot_is_published_again(tmp_path: Path, journal: Journal) -> None:
    broker = Broker(tmp_path, "allow_anonymous true\npersistence false\n")
    broker.start()
    sink = MqttSink(settings(broker.port, settle_s=600.0))
    courier = Courier(journal, sink, first_wait_s=0.02)
    finished(journal, tiles=5)
    courier.start()
    while courier.status().sent < 6:  # acknowledged, though nobody listens
        time.sleep(0.01)
    broker.kill()
    broker.start()
    subscriber = Subscriber(broker.port)
    scene = finished(journal, 1, tiles=1)
    subscriber.wait_for({scene_message(scene).payload})
    courier.stop()
    assert len({properties["key"] for _, _, properties in subscriber.got}) == 8
    subscriber.close()
    broker.kill()


@needs_mosquitto
def test_a_connection_lost_while_idle_is_made_anew_without_a_failure(
    broker: Broker, subscriber: Subscriber, sink: MqttSink
) -> None:
    sink.send(MESSAGES[:1])
    held = sink._connection
    assert held is not None
    broker.kill()
    with held._changed:
        assert held._changed.wait_for(lambda: held._lost, PATIENCE_S)
    broker.start()
    sink.send(MESSAGES[1:2])
    subscriber.wait_for(payloads(MESSAGES[:2]))


@needs_mosquitto
def test_a_broker_that_wants_a_password_gets_it_or_says_no(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "edge", "right"], check=True, capture_output=True)
    (tmp_path / "access").write_text("user edge\ntopic write fusar-edge/scenes/+\n")
    broker = Broker(tmp_path, f"password_file {passwords}\nacl_file {tmp_path}/access\n")
    broker.start()
    (tmp_path / "right").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong")
    wrong = MqttSink(settings(broker.port, username="edge", password_file=tmp_path / "wrong"))
    with pytest.raises(SinkError, match="does not let us in: Not authorized") as caught:
        wrong.send(MESSAGES[:1])
    assert "wrong" not in str(caught.value)
    sink = MqttSink(settings(broker.port, username="edge", password_file=tmp_path / "right"))
    with pytest.raises(
        SinkError, match="Not authorized"
    ) as refused:  # what an access list forbids is not lost silently
        sink.send([MESSAGES[0], scene_message(SCENE)])
    assert refused.value.sent == (SCENE,)
    assert list(refused.value.refused) == [MESSAGES[0].key]
    wrong.close()
    sink.close()
    broker.kill()


@needs_mosquitto
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
# paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_behind_tls_is_trusted_by_its_certificate_alone(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *curve, *name, *files], check=True, capture_output=True)
    broker = Broker(tmp_path, f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}\n")
    broker.start()
    trusting = MqttSink(settings(broker.port, tls=True, ca_file=certificate))
    trusting.send(MESSAGES[:3])
    trusting.close()
    others = MqttSink(settings(broker.port, tls=True))
    with pytest.raises(SinkError, match=r"cannot be reached: .*(?i:certificate.verify.failed)"):
        others.send(MESSAGES[:1])
    others.close()
    broker.kill()


@needs_mosquitto
def test_a_message_larger_than_the_broker_takes_is_refused_and_the_others_go_on(
    tmp_path: Path, journal: Journal
) -> None:
    broker = Broker(tmp_path, "allow_anonymous true\nmax_packet_size 2000\n")
    broker.start()
    sink = MqttSink(settings(broker.port))
    large = Message("large", "scene", SCENE, None, b"x" * 3000)
    with pytest.raises(SinkError) as caught:
        sink.send([MESSAGES[0], large, MESSAGES[1]])
    assert set(caught.value.sent) == {MESSAGES[0].key, MESSAGES[1].key}
    assert caught.value.refused == {"large": "the MQTT broker takes packets of 2000 bytes at most"}
    sink.close()
    broker.kill()


@needs_mosquitto
def test_stopping_does_not_wait_for_a_frozen_broker(broker: Broker, journal: Journal) -> None:
    scene_id = started(journal)
    sink = MqttSink(settings(broker.port), stalled_s=600.0)
    sink.send(MESSAGES[:1])
    broker.signal(signal.SIGSTOP)
    sending, courier = threading.Event(), Courier(journal, sink)
    held = sink._connection
    assert held is not None
    publish = held.publish
    held.publish = lambda *args: (sending.set(), publish(*args))[1]  # type: ignore[method-assign]
    journal.tile_done(scene_id, TileOutcome(0, "answered"), [tile_message(scene_id, 0)])
    courier.start()
    assert sending.wait(PATIENCE_S)
    courier.stop(timeout_s=PATIENCE_S)
    assert not courier.is_alive()
    assert journal.outbox_count("mqtt") == 1
    broker.signal(signal.SIGCONT)


def test_nobody_at_the_address_is_said_without_a_traceback() -> None:
    sink = MqttSink(settings(free_port(), username="edge"))
    with pytest.raises(SinkError, match="cannot be reached: Connection refused"):
        sink.send(MESSAGES)
    sink.close()


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ca_file .*none\.pem"):
        MqttSink(settings(1, tls=True, ca_file=tmp_path / "none.pem"))

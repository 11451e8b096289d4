"""MQTT 5 publisher, QoS 1: a message is delivered when the broker has acknowledged it (PUBACK), and the connection has
held for `settle_s` after: a broker that dies forgets what it has acknowledged and not yet handed on or stored.

Version 5 and not 3.1.1, where a broker acknowledges what it throws away too: a PUBACK of version 5 has a reason code
(section 3.4.2.1 of the OASIS standard). After any trouble the connection is given up and a new one made: what waits is
in the journal, not in the client, so that nothing is queued twice. A message that the broker has taken while its
acknowledgement was lost is sent again, with the same key.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fusar_edge.errors import InputError
from fusar_edge.service.journal import Message
from fusar_edge.service.journal.outbox import ALL_KINDS
from fusar_edge.service.settings import MqttSettings
from fusar_edge.service.sinks.mqtt_connection import Connection
from fusar_edge.service.sinks.sink import SinkError
from fusar_edge.service.sinks.webhook import secret_from_file

STALLED_S = 20.0
"""A broker that acknowledges nothing for so long is given up; a slow one that goes on is waited for."""


class MqttSink:
    """Topics: TOPIC/scenes/ID/tiles/INDEX for tiles, TOPIC/scenes/ID for a scene that is done or has failed. Not
    retained. Payload: the message's JSON; user property `key`, the same in every repetition."""

    name = "mqtt"
    kinds = ALL_KINDS

    def __init__(self, settings: MqttSettings, *, stalled_s: float = STALLED_S) -> None:
        """InputError where the password or the certificates cannot be read. Connects with the first message."""
        self._settings, self._stalled_s, self.settle_s = settings, stalled_s, settings.settle_s
        self._password = None if settings.password_file is None else secret_from_file(settings.password_file).decode()
        if settings.ca_file is not None and not settings.ca_file.is_file():
            raise InputError(
                f"[mqtt] ca_file {settings.ca_file}: it is no file; give the broker's CA certificates, PEM"
            )
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()

    def send(self, messages: Sequence[Message]) -> None:
        connection = self._connected()
        try:
            connection.publish([(self.topic(message), message) for message in messages], self._stalled_s)
        except SinkError:
            if not connection.alive:
                self._drop()
            raise

    def line(self) -> object:
        held = self._connection
        return held if held is not None and held.alive else None

    def topic(self, message: Message) -> str:
        place = f"{self._settings.topic}/scenes/{message.scene_id}"
        return place if message.tile is None else f"{place}/tiles/{message.tile}"

    def interrupt(self) -> None:
        with self._lock:
            self._closing.set()
            if self._connection is not None:
                self._connection.give_up("the service is stopping")

    def close(self) -> None:
        self._drop()

    def _connected(self) -> Connection:
        """The connection that there is, unless it was lost while nothing was to be sent; else a new one."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        self._drop()
        made = Connection(self._settings, self._password)
        with self._lock:
            self._connection = made
            if self._closing.is_set():
                raise SinkError("the service is stopping")
        return made

    def _drop(self) -> None:
        with self._lock:
            held, self._connection = self._connection, None
        if held is not None:
            held.close()

"""One connection to an MQTT broker; once lost, another one is made."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fusar_edge.service.journal import Message
from fusar_edge.service.settings import MqttSettings
from fusar_edge.service.sinks.sink import SinkError

CONNECT_S = 10.0
KEEPALIVE_S = 30
IN_FLIGHT = 20
"""Messages sent and not yet acknowledged, unless the broker wants fewer."""
HEADER_BYTES = 256
"""More than all that a PUBLISH packet has beside its topic, key and payload."""
_QUOTA_EXCEEDED = 0x97
"""Reason code: later it may be taken."""


class Connection:
    """Made connected. `publish` is called by one thread, the rest by any."""

    def __init__(self, settings: MqttSettings, password: str | None) -> None:
        """SinkError where the broker cannot be reached, or does not let us in."""
        self._changed = threading.Condition()
        self._welcomed = False
        self._lost = ""
        """Why the connection is of no use any more."""
        self._acknowledged: dict[int, ReasonCode] = {}
        """By packet id."""
        self._largest_packet: int | None = None
        self._window = 1
        """Messages that the broker takes before it has acknowledged the first; paho does not heed what it says."""
        self._client = self._new_client(settings, password)
        try:
            self._client.connect(settings.host, settings.port, KEEPALIVE_S)
        except (OSError, ssl.SSLError) as problem:
            raise SinkError(f"the MQTT broker cannot be reached: {problem.strerror or problem}") from problem
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._welcomed or self._lost, CONNECT_S)
            problem_text = self._lost or ("" if self._welcomed else f"no answer within {CONNECT_S:g} s")
        if problem_text:
            self.close()
            raise SinkError(f"the MQTT broker does not let us in: {problem_text}")

    @property
    def alive(self) -> bool:
        with self._changed:
            return not self._lost

    def give_up(self, why: str) -> None:
        """End a `publish` that waits."""
        with self._changed:
            self._lost = self._lost or why
            self._changed.notify_all()

    def close(self) -> None:
        """Say goodbye if the broker still listens."""
        self.give_up("closed")
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, messages: Sequence[tuple[str, Message]], stalled_s: float) -> None:
        """Send (topic, message) pairs and wait until each is acknowledged. SinkError says which were not; the
        connection is not `alive` then, unless every message was either taken or refused."""
        refused: dict[str, str] = {}
        waiting: dict[int, str] = {}
        sent: list[str] = []
        for topic, message in messages:
            if self._largest_packet and HEADER_BYTES + len(topic) + len(message.payload) > self._largest_packet:
                refused[message.key] = f"the MQTT broker takes packets of {self._largest_packet} bytes at most"
                continue
            info = self._client.publish(topic, message.payload, qos=1, properties=_properties(message))
            waiting[info.mid] = message.key
            if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self.give_up(f"the MQTT broker has gone: {paho.error_string(info.rc)}")
            if not self._await(self._window - 1, waiting, sent, refused, stalled_s):
                break
        self._await(0, waiting, sent, refused, stalled_s)
        if waiting or refused or len(sent) < len(messages):
            raise SinkError(self._lost or next(iter(refused.values())), sent=sent, refused=refused)

    def _await(
        self, left: int, waiting: dict[int, str], sent: list[str], refused: dict[str, str], stalled_s: float
    ) -> bool:
        """Sort packets into taken and refused ones until no more than `left` wait; False: the connection is lost."""
        with self._changed:
            while len(waiting) > left or self._lost:
                for packet in self._heard(waiting):
                    reason, key = self._acknowledged.pop(packet), waiting.pop(packet)
                    if not reason.is_failure:
                        sent.append(key)
                    elif reason.value != _QUOTA_EXCEEDED:
                        refused[key] = f"the MQTT broker refuses it: {reason}"
                    else:
                        self._lost = f"the MQTT broker refuses it for now: {reason}"
                if self._lost:
                    return False
                if len(waiting) > left and not self._changed.wait_for(
                    lambda: self._lost or self._heard(waiting), stalled_s
                ):
                    self._lost = f"the MQTT broker has acknowledged nothing for {stalled_s:g} s"
            return True

    def _heard(self, waiting: dict[int, str]) -> set[int]:
        return waiting.keys() & self._acknowledged.keys()

    def _new_client(self, settings: MqttSettings, password: str | None) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S / 2
        if settings.username:
            client.username_pw_set(settings.username, password)
        if settings.tls:
            client.tls_set(None if settings.ca_file is None else str(settings.ca_file))
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish = self._on_publish
        return client

    # In paho's network thread ------------------------------------------------------------------------------------

    def _on_connect(self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure:
            self.give_up(str(reason))
            return
        with self._changed:
            self._window = min(IN_FLIGHT, getattr(properties, "ReceiveMaximum", IN_FLIGHT))
            self._largest_packet = getattr(properties, "MaximumPacketSize", None)
            self._welcomed = True
            self._changed.notify_all()

    def _on_disconnect(self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, ___: Any) -> None:
        self.give_up(f"the MQTT broker has gone: {reason}")

    def _on_publish(self, client: paho.Client, _: Any, packet: int, reason: ReasonCode, __: Any) -> None:
        with self._changed:
            self._acknowledged[packet] = reason
            self._changed.notify_all()


def _properties(message: Message) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType = "application/json"
    properties.UserProperty = ("key", message.key)
    return properties
